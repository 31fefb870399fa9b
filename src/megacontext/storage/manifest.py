"""What the first two members of an archive say: which memory it is, and which objects follow.

::

    manifest.json          this module's `Manifest`
    objects.txt            a line for each object, in their order: name, size in bytes, kind
    tokenizer/<file>       the memory's tokenizer, sorted by name
    objects/ab/<name>      the objects, as they lie in a memory's folder; pruned ones, too, or in their place
    pruned/<name>          their stubs, where the archive is made without pruned detail
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from megacontext.core.ranges import BlockRange
from megacontext.errors import ArchiveError, CorruptObject, FormatVersionError, InvalidInput
from megacontext.storage.erased import ErasedList
from megacontext.storage.hashing import Json, is_name
from megacontext.storage.info import MemoryInfo, parse_info
from megacontext.storage.refs import check_name
from megacontext.storage.stubs import FOLDER as STUBS

NAME = "manifest.json"
LIST = "objects.txt"
KIND = "megacontext-archive"
# The second is written where objects are pruned, of which the first knew nothing.
VERSIONS = (1, 2)
# An object of which the archive has a stub only, and where that lies.
STUB = "stub"
# The largest that an archive may hold, whatever it says of itself.
MANIFEST_BYTES = 64 * 2**20
FILE_BYTES = 256 * 2**20
OBJECT_BYTES = 2**30
LINE_BYTES = 100


class Listed(dict[str, tuple[int, str]]):
    """Objects of an archive: name → size in bytes and kind, in order."""

    def to_bytes(self) -> bytes:
        """The content of objects.txt."""
        return b"".join(f"{name} {size} {kind}\n".encode() for name, (size, kind) in self.items())


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`branches` and `tags` name commits, `head` is the current branch. `history` says whether the commits before those are
    in the archive; without it they have no parents. `erased` is the list of what may not come back. `objects` objects of
    `object_bytes` bytes follow. `pruned` maps those that were pruned to ranges of their rows: they are whole in the archive,
    or, where it was made without them, stubs."""

    memory: MemoryInfo
    head: str
    branches: Mapping[str, str]
    tags: Mapping[str, str]
    history: bool
    erased: ErasedList
    objects: int
    object_bytes: int
    pruned: Mapping[str, Sequence[BlockRange]] = field(default_factory=dict)
    version: int = VERSIONS[0]

    def to_bytes(self) -> bytes:
        """The content of manifest.json."""
        plain = {**vars(self), "memory": asdict(self.memory), "erased": self.erased.to_json() if self.erased else None}
        return json.dumps({"kind": KIND, **plain}, indent=1, sort_keys=True).encode() + b"\n"


def parse_manifest(data: bytes) -> Manifest:
    """The inverse of `to_bytes`, for bytes from anybody. Raises ArchiveError, FormatVersionError, InvalidInput for a
    name that cannot be a branch's or tag's."""
    value = _json(data)
    if value.get("kind") != KIND:
        raise ArchiveError(f"this is no archive of a memory: its {NAME} is of kind {value.get('kind')!r:.40}")
    if value.get("version") not in VERSIONS:
        raise FormatVersionError(
            f"this archive has version {value.get('version')!r:.20}; this version of megacontext reads versions "
            f"{', '.join(map(str, VERSIONS))}: upgrade megacontext"
        )
    try:
        value = {"pruned": {}, **value}
        known = {each.name: value[each.name] for each in fields(Manifest)}
        known["memory"] = parse_info(dict(value["memory"]), "this archive")
        known["erased"] = ErasedList(()) if value["erased"] is None else ErasedList.from_json(value["erased"])
        manifest = Manifest(**known)
        _check(manifest)
    except (KeyError, TypeError, AttributeError, ValueError, CorruptObject) as error:
        if isinstance(error, InvalidInput):
            raise
        raise ArchiveError(f"the {NAME} of this archive is not well formed ({error!r:.99})") from error
    return manifest


def _json(data: bytes) -> Json:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"the {NAME} of this archive is no JSON") from error
    if not isinstance(value, dict):
        raise ArchiveError(f"the {NAME} of this archive is no JSON object")
    return value


def _check(manifest: Manifest) -> None:
    for refs in (manifest.branches, manifest.tags):
        for name, commit in refs.items():
            check_name(name)
            if not is_name(commit):
                raise ValueError(f"{name} names no commit")
    if manifest.head not in manifest.branches:
        raise ValueError("its head is no branch")
    if any(type(number) is not int or number < 0 for number in (manifest.objects, manifest.object_bytes)):
        raise ValueError("its sizes are no numbers")
    for name, ranges in manifest.pruned.items():
        flat = [edge for start, stop in ranges for edge in (start, stop)]
        if not is_name(name) or any(type(edge) is not int for edge in flat) or flat != sorted(set(flat)) or flat[:1] < [0]:
            raise ValueError(f"{name!r:.70} has no ranges of rows")
    if type(manifest.history) is not bool:
        raise ValueError("history is true or false")
    for name, content in manifest.memory.tokenizer_files.items():
        if "/" in name or "\0" in name or name in ("", ".", "..") or len(name) > 80 or not is_name(content):
            raise ValueError(f"{name!r:.40} is not the plain name of a file")


def parse_list(lines: Iterable[bytes], manifest: Manifest) -> Listed:
    """The objects that objects.txt lists, line by line. Raises ArchiveError for other lines, a name twice, an object that is
    too large, and where it is not what the manifest says."""
    listed, total = Listed(), 0
    for line in lines:
        name, size, kind = _line(line)
        if name in listed:
            raise ArchiveError(f"object {name} is listed twice in this archive")
        listed[name] = (size, kind)
        total += size
    if (len(listed), total) != (manifest.objects, manifest.object_bytes):
        raise ArchiveError(
            f"this archive lists {len(listed)} objects of {total} bytes, and says that it holds {manifest.objects} of "
            f"{manifest.object_bytes}"
        )
    return listed


def _line(line: bytes) -> tuple[str, int, str]:
    parts = line.split(b" ")
    if len(parts) == 3 and len(parts[1]) <= 12 and parts[1].isdigit() and parts[2].isascii():
        name, size, kind = parts[0].decode("ascii", "replace"), int(parts[1]), parts[2].decode()
        if is_name(name) and size <= OBJECT_BYTES and kind.replace("-", "").isalpha():
            return name, size, kind
    raise ArchiveError(f"this line of {LIST} lists no object: {line[:80]!r}")


def lines_of(chunks: Iterable[bytes], limit: int = LINE_BYTES) -> Iterator[bytes]:
    """The lines of a stream; raises ArchiveError for one of more than `limit` bytes."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        if len(rest) > limit:
            break
    if rest:
        raise ArchiveError(f"{LIST} has a line without an end")


def member_path(name: str, kind: str) -> str:
    """Where an object, or its stub, lies in an archive."""
    return f"{STUBS}/{name}" if kind == STUB else f"objects/{name[:2]}/{name}"
