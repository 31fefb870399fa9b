"""Stubs: what stays in reach of objects whose raw tokens were pruned.

The object itself, under its name, is in an archive; `pruned/<name>` holds the same rows with those of the pruned blocks left
out, so that everything else in it is read as before. An object that is in its place counts, whatever stub there is: so each
step of pruning and restoring may be the last one before a crash.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megacontext.core.ranges import BlockRange, joined
from megacontext.errors import CorruptObject, MissingObject
from megacontext.storage import files
from megacontext.storage.hashing import digest, is_name
from megacontext.storage.tensors import Array, decode, encode

FOLDER = "pruned"
ARCHIVE = "archive"
# No branch's: a quoted name holds no "+".
LOCK = "+prune"
# The archive of an object that stayed where this memory was imported from.
ELSEWHERE = "elsewhere"
RESTORE = "its raw tokens were pruned; megacontext restore brings them back"
# What the archived object is: a segment or page, or the bytes of a document's source.
TOKENS, ORIGINAL = "tokens", "original"
_FETCH = "make it reachable there, or bring its tokens back with megacontext restore --archive FOLDER"
_KEEP = 64
# A file's inode and the time of its last change, in nanoseconds.
Mark = tuple[int, int]


@dataclass(frozen=True)
class Stub:
    """The object `name` without the rows in `ranges`: `arrays` are its own, with zeros for the ids of those. `archive` is the
    folder that has it whole, '' for the memory's own."""

    name: str
    kind: str
    ranges: tuple[BlockRange, ...] = ()
    arrays: dict[str, Array] = field(default_factory=dict)
    archive: str = ""

    @property
    def rows(self) -> int:
        """How many blocks are left out."""
        return sum(stop - start for start, stop in self.ranges)

    @classmethod
    def of_tokens(cls, name: str, arrays: dict[str, Array], ranges: Iterable[BlockRange], archive: str) -> Stub:
        """The stub of a segment or page with these arrays."""
        gone = joined(ranges)
        ids = np.where(_mask(gone, len(arrays["ids"]))[:, None], np.uint32(0), arrays["ids"])
        return cls(name, TOKENS, gone, {**arrays, "ids": ids}, archive)

    @classmethod
    def of_object(cls, name: str, data: bytes, kind: str, ranges: Iterable[BlockRange], archive: str) -> Stub:
        """The stub of an object with these bytes."""
        if kind == ORIGINAL:
            return cls(name, ORIGINAL, archive=archive)
        arrays, _ = decode(memoryview(data))
        return cls.of_tokens(name, arrays, ranges, archive)

    def to_bytes(self) -> bytes:
        """The file's content: its own checksum, then the rows that are left."""
        ranges = np.array(self.ranges, np.int64).reshape(-1, 2)
        arrays: dict[str, Array] = {"ranges": ranges}
        if self.kind == TOKENS:
            left = ~_mask(self.ranges, len(self.arrays["ids"]))
            arrays |= {**self.arrays, "ids": np.ascontiguousarray(self.arrays["ids"][left])}
        body = encode(arrays, {"kind": "stub", "of": self.kind, "name": self.name, "archive": self.archive})
        return f"{digest(body)}\n".encode() + body

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Stub:
        """The inverse; raises CorruptObject for anything else."""
        try:
            head, body = data[:64].decode("ascii"), data[65:]
            views, metadata = decode(memoryview(body))
            arrays = {key: np.array(view) for key, view in views.items()}
            if head != digest(body) or metadata["name"] != name or metadata["kind"] != "stub":
                raise ValueError("its checksum or its name is wrong")
            ranges = joined((int(start), int(stop)) for start, stop in arrays.pop("ranges").tolist())
            if metadata["of"] == TOKENS:
                left = ~_mask(ranges, len(arrays["fill"]))
                ids = np.zeros((len(left), arrays["ids"].shape[1]), np.uint32)
                ids[left] = arrays["ids"]
                arrays["ids"] = ids
            return cls(name, metadata["of"], ranges, arrays, metadata["archive"])
        except (ValueError, KeyError, TypeError, IndexError, UnicodeDecodeError) as error:
            raise CorruptObject(f"{FOLDER}/{name} is damaged: {error}; megacontext restore does without it") from error


class Stubs:
    """The stubs of the memory at `root`."""

    def __init__(self, root: Path) -> None:
        self._root, self._folder = root, root / FOLDER
        self._known: OrderedDict[tuple[str, frozenset[tuple[str, Mark]]], tuple[BlockRange, ...]] = OrderedDict()

    @property
    def there(self) -> bool:
        """Whether this memory may have any."""
        return os.path.isdir(self._folder)

    def names(self) -> frozenset[str]:
        """Names of the objects that have one."""
        return frozenset(self._marks())

    def load(self, name: str) -> Stub | None:
        """The stub of an object, if it has one. Raises CorruptObject."""
        try:
            data = (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        return Stub.from_bytes(data, name)

    def write(self, stub: Stub) -> None:
        """Writes or replaces a stub, durably."""
        if not self._folder.is_dir():
            files.make_folder(self._folder)
            files.sync_folder(self._folder.parent)
        files.replace_file(self._folder / stub.name, stub.to_bytes())

    def place(self, stub: Stub) -> Path:
        """Where an object is archived."""
        own = self._root / ARCHIVE
        # What stayed elsewhere is nowhere that is known.
        folder = own / ELSEWHERE if stub.archive == ELSEWHERE else Path(stub.archive) if stub.archive else own
        return folder / stub.name

    def archived(self, name: str, folder: Path | None = None) -> bytes:
        """The bytes of a pruned object, from its archive or from this one. Raises MissingObject, CorruptObject."""
        stub = self.load(name)
        if stub is None:
            raise MissingObject(f"object {name} has no stub: it was never pruned, or is restored by now")
        path = folder / name if folder else self.place(stub)
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            left = stub.archive == ELSEWHERE and folder is None
            where = "stayed where this memory was imported from" if left else f"is not in the archive {path.parent}"
            raise MissingObject(f"object {name} {where}: {_FETCH}") from error
        if digest(data) != name:
            raise CorruptObject(f"object {name} is damaged in the archive {path.parent}: its bytes differ from its name")
        return data

    def at_hand(self, name: str) -> bool:
        """Whether the archive of a pruned object has it."""
        stub = self.load(name)
        return stub is not None and self.place(stub).is_file()

    def elsewhere(self) -> list[str]:
        """The files of archived objects that lie outside of the memory's own archive and are known, sorted."""
        stubs = (self.load(name) for name in self.names())
        return sorted(str(self.place(stub)) for stub in stubs if stub and stub.archive not in ("", ELSEWHERE))

    def keep(self, name: str, data: bytes, kind: str, ranges: Iterable[BlockRange]) -> None:
        """Archives an object with these rows pruned, durably, in the archive to which the last one went. Whoever calls has
        the lock of `LOCK`. What is pruned of it already stays so."""
        stub = self.load(name)
        known = stub.ranges if stub else ()
        archive = stub.archive if stub and stub.archive != ELSEWHERE else self._home()
        new = Stub.of_object(name, data, kind, (*known, *ranges), archive)
        place = self.place(new)
        if not (place.is_file() and files.freshen(place)):
            files.make_folder(place.parent)
            files.replace_file(place, data)
            files.sync_folder(place.parent.absolute().parent)
        if stub is None or (new.ranges, new.archive) != (known, stub.archive):
            self.write(new)

    def _home(self) -> str:
        """The archive of the newest stub, '' for the memory's own: that is where its owner wants such objects."""
        marks = self._marks()
        newest = self.load(max(marks, key=lambda name: marks[name][1])) if marks else None
        return newest.archive if newest and newest.archive != ELSEWHERE else ""

    def remove(self, names: Iterable[str]) -> None:
        """Removes stubs, those that are there, durably."""
        for name in names:
            files.remove(self._folder / name)
        if self._folder.is_dir():
            files.sync_folder(self._folder)

    def ranges(
        self, root: str, segments: Callable[[], Iterable[str]], size: int, there: Callable[[str], bool]
    ) -> tuple[BlockRange, ...]:
        """The pruned blocks in a list of `segments` of `size` blocks with this `root`; `there` tells of an object whether it
        is in its place."""
        marks = self._marks() if root else {}
        gone = frozenset((name, mark) for name, mark in marks.items() if not there(name))
        if not gone:
            return ()
        key, names = (root, gone), {name for name, _ in gone}
        if key not in self._known:
            found: list[BlockRange] = []
            for number, name in enumerate(segments()):
                stub = self.load(name) if name in names else None
                found += ((number * size + start, number * size + stop) for start, stop in (stub.ranges if stub else ()))
            self._known[key] = joined(found)
            if len(self._known) > _KEEP:
                self._known.popitem(last=False)
        return self._known[key]

    def _marks(self) -> dict[str, Mark]:
        """The stubs there are, each with what changes when it is written anew. Usually there is not even the folder."""
        try:
            with os.scandir(self._folder) as entries:
                stats = [(each.name, each.stat()) for each in entries if is_name(each.name)]
        except FileNotFoundError:
            return {}
        return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats}


def _mask(ranges: Iterable[BlockRange], count: int) -> Array:
    mask = np.zeros(count, np.bool_)
    for start, stop in ranges:
        mask[start:stop] = True
    return mask
