"""Names and checksums: blake2b-256 names an object by its content, crc32 guards one journal record.

An object's name has to withstand anything, so it is cryptographic. A journal record only has to reveal
damage, on the path of every decoded token: crc32 finds every single flipped bit and costs a third.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

Json = dict[str, Any]
NAME_BYTES = 32
_NAME = re.compile(r"[0-9a-f]{64}")


def digest(data: bytes | memoryview) -> str:
    """The name of an object with this content: 64 lowercase hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=NAME_BYTES).hexdigest()


class Digest:
    """The name of an object that comes in chunks, once all of them went through `watch`."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=NAME_BYTES)

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks as they are."""
        for chunk in chunks:
            self._hash.update(chunk)
            yield chunk

    @property
    def name(self) -> str:
        """The name so far."""
        return self._hash.hexdigest()


def is_name(text: str) -> bool:
    """Whether `text` has the form of an object's name."""
    return _NAME.fullmatch(text) is not None


def checksum(data: bytes | memoryview, before: int = 0) -> int:
    """crc32 of `data`, continued from the checksum `before` it."""
    return zlib.crc32(data, before)


def canonical(value: Json) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8. Equal values have equal bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def natural(value: object) -> int:
    """A count as JSON gives it; raises ValueError for anything but a whole number from 0 to 2**62, such as infinity."""
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def sealed(value: Json) -> bytes:
    """A small file that reveals any flipped bit: the canonical JSON of a value with its own checksum."""
    return canonical({**value, "checksum": digest(canonical(value))}) + b"\n"


def unsealed(data: bytes) -> Json:
    """The value of a `sealed` file; raises ValueError when a single bit of it is wrong."""
    try:
        value = json.loads(data.decode("utf-8"))
        claimed = value.pop("checksum")
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError("not a checksummed JSON file") from error
    # Comparing the whole text also catches a flip that JSON would not care about, such as a space.
    if digest(canonical(value)) != claimed or sealed(value) != data:
        raise ValueError("the checksum does not match")
    return dict(value)
