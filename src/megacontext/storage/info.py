"""What a memory says about itself: megacontext.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from megacontext.core.node import BLOCK
from megacontext.errors import CorruptObject, FormatVersionError, InvalidInput, MemoryNotFound
from megacontext.storage.format import FORMAT, OLDEST
from megacontext.storage.hashing import Json, digest, sealed, unsealed
from megacontext.storage.place import INFO
from megacontext.storage.segment import PAGE_BLOCKS, SEGMENT_BLOCKS


@dataclass(frozen=True, kw_only=True)
class MemoryInfo:
    """Written once, when a memory is created.

    `tokenizer` is the fingerprint of the tokenizer that its ids belong to, `model` the base model it was made
    for, as free text; `tokenizer_files` maps the files beside it in `tokenizer/` to the hashes of their content.
    """

    tokenizer: str = ""
    model: str = ""
    created: float = 0.0
    tokenizer_files: Mapping[str, str] = field(default_factory=dict)
    segment_blocks: int = SEGMENT_BLOCKS
    block: int = BLOCK
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.segment_blocks not in (PAGE_BLOCKS, SEGMENT_BLOCKS):
            raise InvalidInput(f"segment_blocks is {PAGE_BLOCKS} or {SEGMENT_BLOCKS}")

    def to_bytes(self) -> bytes:
        """The file's content, which carries its own checksum."""
        return sealed(asdict(self))


def read_info(root: Path) -> MemoryInfo:
    """The info of the memory at `root`. Raises MemoryNotFound, CorruptObject, FormatVersionError."""
    path = root / INFO
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MemoryNotFound(f"no memory at {root}; create one with `megacontext init`") from error
    try:
        value = unsealed(data)
    except ValueError as error:
        raise CorruptObject(f"{path} is damaged: {error}") from error
    # The checksum first: a flipped bit in the number is damage, not a newer version. Every format keeps both.
    return parse_info(value, str(root))


def parse_info(value: Json, where: str) -> MemoryInfo:
    """What megacontext.json, or an archive, says about the memory `where`. Raises FormatVersionError, CorruptObject."""
    number, block = value.get("format"), value.get("block")
    if type(number) is not int or not OLDEST <= number <= FORMAT or block != BLOCK:
        raise FormatVersionError(
            f"{where} has format {number} with blocks of {block}; this version reads formats {OLDEST} to {FORMAT} with "
            f"blocks of {BLOCK}: upgrade megacontext, and nothing here is changed"
        )
    try:
        info = MemoryInfo(**{each.name: value[each.name] for each in fields(MemoryInfo)})
    except (KeyError, TypeError, InvalidInput) as error:
        raise CorruptObject(f"what {where} says about itself is not well formed ({error!r})") from error
    texts = (info.tokenizer, info.model, *info.tokenizer_files, *info.tokenizer_files.values())
    if not all(isinstance(text, str) for text in texts) or not isinstance(info.created, int | float):
        raise CorruptObject(f"what {where} says about itself is not well formed")
    return info


def damaged_files(root: Path, info: MemoryInfo) -> dict[str, str]:
    """Tokenizer files that are missing or differ from their hash: name → what is wrong."""
    wrong = {}
    for name, expected in info.tokenizer_files.items():
        try:
            data = (root / "tokenizer" / name).read_bytes()
        except OSError:
            wrong[name] = "missing"
            continue
        if digest(data) != expected:
            wrong[name] = "damaged"
    return wrong
