"""The objects of an archive while they are checked, out of everybody's sight, and what of them is not to be taken.

Documents that may not come in are erased from what was received before anything of it gets its name: the commits are written
anew without them, as an erasure does it, and the objects that only those documents needed are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from megacontext.core.ranges import BlockRange
from megacontext.errors import ArchiveError, CorruptObject, DetailPruned, MissingObject
from megacontext.storage import files
from megacontext.storage.closure import Closure
from megacontext.storage.documents import DocumentRecord
from megacontext.storage.erased import ErasedList
from megacontext.storage.erasure.doomed import Doomed, Version, completed
from megacontext.storage.erasure.erase import all_records
from megacontext.storage.erasure.evidence import Evidence
from megacontext.storage.erasure.names import redactor
from megacontext.storage.erasure.rewrite import Remake, Rewriter, Rewritten, in_order
from megacontext.storage.garbage import IMPORTS
from megacontext.storage.gists import LayerSpec
from megacontext.storage.manifest import STUB, Listed
from megacontext.storage.objects import LocalObjectStore
from megacontext.storage.place import local_store
from megacontext.storage.stubs import ELSEWHERE, LOCK, ORIGINAL, TOKENS, Stub, Stubs
from megacontext.storage.whole import WholeReader, WholeStore

# What makes gists of a layer's GistNet again, None where it is not at hand: see `rewrite.Rewriter`.
Remakes = Callable[[LayerSpec], Remake | None]


class Received(WholeStore):
    """Where the objects of an archive for the memory at `root` are staged. It reads nothing but those, whatever else the memory
    holds. `pruned` maps those that are to be pruned to their rows."""

    def __init__(self, root: Path, listed: Listed, pruned: Mapping[str, Sequence[BlockRange]]) -> None:
        super().__init__(root, IMPORTS)
        self._memory = root
        self.stubs = Stubs(root / "staging" / IMPORTS)
        self._kinds = {name: kind for name, (_, kind) in listed.items()}
        self._rows = {name: tuple((start, stop) for start, stop in ranges) for name, ranges in pruned.items()}

    def put(self, data: bytes) -> str:
        """See `ObjectStore`."""
        name = super().put(data)
        self._kinds.setdefault(name, "")
        return name

    def get(self, name: str) -> bytes:
        """See `ObjectStore`; MissingObject for what the archive does not list."""
        return super().get(self._listed(name))

    def view(self, name: str) -> memoryview:
        """See `ObjectStore`; MissingObject for what the archive does not list."""
        return super().view(self._listed(name))

    def has(self, name: str) -> bool:
        """See `ObjectStore`."""
        return self._kinds.get(name, STUB) != STUB and super().has(name)

    def absent(self, name: str) -> MissingObject | DetailPruned:
        """Why an object is not there."""
        return (
            DetailPruned(f"of object {name} this archive has a stub only")
            if self._kinds.get(name) == STUB
            else super().absent(name)
        )

    def pruned_rows(self, name: str) -> tuple[BlockRange, ...]:
        """Which rows of a segment or page are to be pruned."""
        return self._rows.get(name, ())

    def take_stub(self, name: str, data: bytes) -> None:
        """Stages a stub. Raises ArchiveError for one that is none, or tells other tokens than the memory knows."""
        try:
            stub = Stub.from_bytes(data, name)
        except CorruptObject as error:
            raise ArchiveError(f"this archive is damaged: {error}") from error
        if stub.archive != ELSEWHERE or stub.ranges != self._rows.get(name):
            raise ArchiveError(f"the stub of object {name} in this archive is not as megacontext export writes it")
        if (known := self._known(name)) is not None and stub.kind == TOKENS and not _agree(stub, known):
            raise ArchiveError(f"the stub of object {name} in this archive tells other tokens than this memory has")
        self.stubs.write(stub)

    def check_pruned(self) -> None:
        """Raises ArchiveError where something else than rows of tokens, or an original, is to be pruned."""
        for name, ranges in self._rows.items():
            kind = self._kinds.get(name)
            rows = len(WholeReader(self).blocks(name)[0]["ids"]) if kind == TOKENS else 0
            if kind not in (TOKENS, ORIGINAL, STUB) or (kind != STUB and any(stop > rows for _, stop in ranges)):
                raise ArchiveError(f"object {name} of this archive is to be pruned, and has no such rows")

    def settle(self) -> int:
        """Makes all of it durable, pruned objects in the archive of the memory; returns how many objects are new."""
        for name, ranges in self._rows.items():
            if self._kinds[name] != STUB:
                self.to_archive(name, self._kinds[name], ranges)
        new, own = self.staged, Stubs(self._memory)
        self.sync()
        lock = files.FileLock(self._memory / "locks" / LOCK)
        try:
            lock.acquire(wait=True, what="what is pruned")
            for name in sorted(self.stubs.names()):
                stub = self.stubs.load(name)
                if stub is not None and own.load(name) is None:
                    own.write(stub)
        finally:
            lock.release()
        return new

    def keep_only(self, names: Iterable[str]) -> None:
        """Drops what was received and is none of these."""
        kept = set(names)
        for name in [name for name in self._staged if name not in kept]:
            self._staged.pop(name).unlink()
            self._rows.pop(name, None)
        self.stubs.remove(self.stubs.names() - kept)
        self._rows = {name: ranges for name, ranges in self._rows.items() if name in kept}

    def _listed(self, name: str) -> str:
        if name not in self._kinds:
            raise MissingObject(f"object {name!r:.70} is not in this archive")
        return name

    def _known(self, name: str) -> Stub | None:
        """What the memory knows of an object: all of it, or what a stub of its own tells."""
        own: LocalObjectStore = local_store(self._memory, "unused")
        if own.has(name):
            return Stub.of_object(name, own.get(name), TOKENS, (), "")
        return Stubs(self._memory).load(name)


def refused(reader: WholeReader, commits: Iterable[str], erased: ErasedList) -> list[DocumentRecord]:
    """The distinct records of these commits, and of all before them, that may not come in."""
    records = all_records(reader, in_order(reader, commits)) if erased else []
    return [record for record in records if erased.refuses(record)]


def without(
    store: Received, segment_blocks: int, commits: Iterable[str], gone: Sequence[DocumentRecord], remake: Remakes
) -> Rewritten:
    """Writes the commits anew without these documents, and drops what nothing needs then. Raises ArchiveError where of what is
    to be taken out there are stubs only."""
    reader, names = WholeReader(store), tuple(dict.fromkeys(commits))
    order = in_order(reader, names)
    records = all_records(reader, order)
    versions = frozenset(Version.of(record) for record in gone)
    hashes = frozenset((record.source, record.text_hash) for record in gone if record.text_hash)
    doomed = completed(Doomed(versions=versions, texts=hashes), records)
    evidence = Evidence(reader, segment_blocks)
    kept = {record.source for record in records if record not in doomed}
    try:
        done = Rewriter(store, segment_blocks, doomed, remake, redactor(doomed.sources, kept), evidence).history(order)
        evidence.check(done, doomed, reader)
    except MissingObject as error:
        raise ArchiveError(
            "what may not come in cannot be taken out of this archive, since it was made --without-pruned: export it with "
            f"pruned detail ({error})"
        ) from error
    closure = Closure(reader)
    for _ in closure.of(done.renamed.get(name, name) for name in names):
        pass
    store.keep_only(closure.names)
    return done


def _agree(left: Stub, right: Stub) -> bool:
    """Whether two stubs of one object tell the same where neither leaves a row out."""
    mine, other = left.arrays, right.arrays
    if mine.keys() != other.keys() or any(mine[key].shape != other[key].shape for key in mine):
        return False
    both = np.ones(len(left.arrays["ids"]), np.bool_)
    for start, stop in (*left.ranges, *right.ranges):
        both[start:stop] = False
    same = np.array_equal(left.arrays["ids"][both], right.arrays["ids"][both])
    return same and all(np.array_equal(left.arrays[key], right.arrays[key]) for key in ("doc", "fill"))
