"""The note that makes an erasure happen once it has begun: written when all that is new is durable, before anything old goes.

While it is there, branches cannot be written; the next opening of the memory carries out what it says. It holds what the last
scan looks for, so it is the last thing to go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megacontext.errors import CorruptObject
from megacontext.storage import files
from megacontext.storage.erasure.needles import KINDS, Needle
from megacontext.storage.hashing import digest
from megacontext.storage.place import ERASING
from megacontext.storage.tensors import Array, decode, encode


@dataclass(frozen=True, kw_only=True)
class Intent:
    """`id` names the erasure in the audit log; `renamed` maps old commits to new ones; `erased` is the list of what may not
    come in again, from then on; `originals` are objects with texts of documents that stay, which may name others; `needles`
    are to be found nowhere; `receipt` is what the audit log says of it all, but for the last scan. `elsewhere` are archived
    objects outside of the memory's folder."""

    id: str
    author: str
    renamed: Mapping[str, str]
    erased: Mapping[str, Any]
    originals: Sequence[str]
    receipt: Mapping[str, Any]
    needles: Sequence[Needle] = field(repr=False)
    elsewhere: Sequence[str] = ()

    def save(self, root: Path) -> None:
        """Writes it to the memory at `root`, durably."""
        ends = np.cumsum([len(each.data) for each in self.needles], dtype=np.int64)
        excuses = {
            str(number): [[offset, whole.hex()] for offset, whole in each.excuses]
            for number, each in enumerate(self.needles)
            if each.excuses
        }
        arrays: dict[str, Array] = {
            "data": np.frombuffer(b"".join(each.data for each in self.needles), np.uint8),
            "ends": ends,
            "kinds": np.array([KINDS.index(each.kind) for each in self.needles], np.uint8),
        }
        plain = {name: value for name, value in vars(self).items() if name != "needles"}
        body = encode(arrays, {"intent": json.dumps(plain, default=dict), "excuses": json.dumps(excuses)})
        files.replace_file(root / ERASING, digest(body).encode() + body)


def load_intent(root: Path) -> Intent | None:
    """That of an erasure which has begun and is not finished; None as a rule. Raises CorruptObject."""
    path = root / ERASING
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        claimed, body = data[:64].decode(), memoryview(data)[64:]
        if digest(body) != claimed:
            raise ValueError("the checksum does not match")
        arrays, metadata = decode(body)
        ends, kinds = arrays["ends"].tolist(), arrays["kinds"].tolist()
        raw, excuses = arrays["data"].tobytes(), json.loads(metadata["excuses"])
        needles = []
        for number, (start, stop, kind) in enumerate(zip([0, *ends[:-1]], ends, kinds, strict=True)):
            longer = tuple((offset, bytes.fromhex(whole)) for offset, whole in excuses.get(str(number), ()))
            needles.append(Needle(KINDS[kind], raw[start:stop], longer))
        return Intent(**json.loads(metadata["intent"]), needles=needles)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CorruptObject(f"{path} is damaged ({error}): remove it, and erase the same again") from error


def forget(root: Path) -> None:
    """Removes it, durably: the erasure is done."""
    files.remove(root / ERASING)
    files.sync_folder(root)
