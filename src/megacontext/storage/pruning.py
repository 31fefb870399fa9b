"""Prune: raw tokens of chosen documents go to an archive, their gists stay; restore brings the same bytes back.

Segments, pages of earlier commits and originals are moved as they are, under their names, and a stub stays in their place
(see `stubs`). First the archive has an object, durably, then there is its stub, then it is removed: a crash leaves each
object as it was or as it is to be, and nothing is in neither place. What a protected tag holds, and what a branch has not
sealed yet, stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from megacontext.core.ranges import BlockRange, joined
from megacontext.errors import CorruptObject, InvalidInput, MissingObject
from megacontext.storage import files
from megacontext.storage.commit import Commit, load_commit, load_documents, load_tokens
from megacontext.storage.documents import DocumentRecord, Documents, load_page
from megacontext.storage.hashing import digest, is_name
from megacontext.storage.merkle import get, iterate
from megacontext.storage.objects import LocalObjectStore, ObjectReader
from megacontext.storage.place import local_store
from megacontext.storage.refs import BRANCHES, TAGS, Refs
from megacontext.storage.segment import PAGE_BLOCKS
from megacontext.storage.stubs import ORIGINAL, TOKENS, Stub, Stubs
from megacontext.storage.tensors import decode

ARCHIVE = "archive"
# No branch's: a quoted name holds no "+".
LOCK = "+prune"
Choice = Callable[[DocumentRecord], bool]


@dataclass
class Detail:
    """Where the raw detail of chosen documents lies: rows of `pieces` (segments and pages) by name, and `originals`.
    `blocks` is how many they have in the newest commit, of which `kept` are in what has to stay."""

    pieces: dict[str, tuple[BlockRange, ...]] = field(default_factory=dict)
    originals: set[str] = field(default_factory=set)
    blocks: int = 0
    kept: int = 0


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What was moved: `objects` whose detail went or came back, with `rows` blocks and, for whole objects, `bytes`."""

    objects: int
    rows: int
    bytes: int


class Pruner:
    """Prunes and restores in the memory at `root`."""

    def __init__(self, root: Path, segment_blocks: int) -> None:
        self._root, self._size = root, segment_blocks
        self._store: LocalObjectStore = local_store(root, LOCK)
        self._stubs = Stubs(root)
        self._reader = ObjectReader(self._store, keep=256, stubs=self._stubs)

    def find(self, head: str, chosen: Choice) -> Detail:
        """The raw detail of the documents that are `chosen`, in a commit and all before it."""
        detail, others = Detail(), set[str]()
        for number, commit in enumerate(self._history(head)):
            mine = self._of_commit(commit, chosen, detail, others)
            if number == 0:
                detail.blocks = mine
        detail.originals -= others
        return detail

    def without_kept(self, detail: Detail, head: str, chosen: Choice) -> Detail:
        """What of it may go: no object of a protected tag, and no page at the end of a branch."""
        refs, kept = Refs(self._root), set[str]()
        for name in refs.names(BRANCHES):
            kept |= set(load_tokens(self._reader, self._commit(refs, BRANCHES, name)).strand.pages)
        for name in refs.names(TAGS):
            if refs.protected(TAGS, name):
                kept |= self._whole(self._commit(refs, TAGS, name))
        rest = Detail(originals=detail.originals - kept, blocks=detail.blocks)
        rest.pieces = {name: ranges for name, ranges in detail.pieces.items() if name not in kept}
        newest = Detail()
        self._of_commit(load_commit(self._reader, head), chosen, newest, set())
        rest.kept = sum(b - a for name, ranges in newest.pieces.items() if name in kept for a, b in ranges)
        return rest

    def prune(self, detail: Detail, archive: Path | None = None) -> Moved:
        """Moves it to the archive, a folder (None: the memory's own). Done again after a crash it goes on."""
        folder = archive or self._root / ARCHIVE
        with self._alone():
            files.make_folder(folder)
            files.sync_folder(folder.absolute().parent)
            rows = size = 0
            done: list[str] = []
            for name, ranges in sorted(detail.pieces.items()):
                arrays, before = self._reader.blocks(name)
                whole = joined((*before, *ranges))
                if whole == before:
                    continue
                stub = Stub.of_tokens(name, arrays, whole, self._archive_of(name, before, archive))
                size += self._keep(name, folder) if not before else 0
                rows += stub.rows - sum(stop - start for start, stop in before)
                self._stubs.write(stub)
                done.append(name)
            for name in sorted(detail.originals):
                if self._store.has(name):
                    size += self._keep(name, folder)
                    self._stubs.write(Stub(name, ORIGINAL, archive=_text(archive)))
                    done.append(name)
            with self._swept():
                self._store.remove(done)
        return Moved(objects=len(done), rows=rows, bytes=size)

    def restore(self, detail: Detail | None = None, archive: Path | None = None) -> Moved:
        """Brings detail back (None: all there is), from the archive that each stub names, or from this one. Raises
        MissingObject where it does not have an object, CorruptObject where its bytes are others; what came before is back."""
        names = self._stubs.names()
        wanted = names if detail is None else names & {*detail.pieces, *detail.originals}
        objects = rows = size = 0
        with self._alone():
            for name in sorted(wanted):
                stub = self._stubs.load(name)
                if stub is None:
                    continue
                back = stub.ranges if detail is None else _common(stub.ranges, detail.pieces.get(name, ()))
                left = _without(stub.ranges, back)
                if self._store.has(name) or (stub.kind == TOKENS and not back):
                    if self._store.has(name):
                        self._forget(stub)
                    continue
                data = self._archived(stub, archive)
                objects, rows = objects + 1, rows + sum(stop - start for start, stop in back)
                if left:
                    self._stubs.write(self._again(stub, data, left))
                    continue
                size += len(data)
                self._store.put(data)
                self._store.sync()
                self._forget(stub)
        return Moved(objects=objects, rows=rows, bytes=size)

    def _history(self, head: str) -> Iterator[Commit]:
        seen, todo = {head}, [head]
        while todo:
            commit = load_commit(self._reader, todo.pop())
            yield commit
            todo += [name for name in commit.parents if name not in seen and self._store.has(name)]
            seen |= set(commit.parents)

    def _of_commit(self, commit: Commit, chosen: Choice, detail: Detail, others: set[str]) -> int:
        """Adds what a commit holds of the chosen documents; returns their blocks."""
        records = self._records(commit)
        mine = [record for record in records if not record.open and chosen(record)]
        detail.originals |= {record.original for record in mine if record.original}
        others |= {record.original for record in records if record.original and not chosen(record)}
        spans = joined(record.span for record in mine if record.blocks)
        tree = load_tokens(self._reader, commit)
        sealed = tree.strand.segments.count * self._size
        for start, stop in spans:
            for number in range(start // self._size, -(-min(stop, sealed) // self._size)):
                name = get(self._reader, tree.strand.segments, number)
                _add(detail, name, start, stop, number * self._size, self._size)
            for number in range(max(start - sealed, 0) // PAGE_BLOCKS, -(-max(stop - sealed, 0) // PAGE_BLOCKS)):
                _add(detail, tree.strand.pages[number], start, stop, sealed + number * PAGE_BLOCKS, PAGE_BLOCKS)
        return sum(stop - start for start, stop in spans)

    def _records(self, commit: Commit) -> list[DocumentRecord]:
        strand = load_documents(self._reader, commit).records
        newest = [record for name in strand.pages for record in load_page(self._reader, name)]
        return list(Documents(self._reader, strand, tuple(newest)))

    def _commit(self, refs: Refs, kind: str, name: str) -> Commit:
        return load_commit(self._reader, str(refs.read(kind, name)))

    def _whole(self, commit: Commit) -> set[str]:
        """All segments, pages and originals of a commit."""
        strand = load_tokens(self._reader, commit).strand
        originals = {record.original for record in self._records(commit)}
        return {*iterate(self._reader, strand.segments), *strand.pages, *originals}

    def _archive_of(self, name: str, before: tuple[BlockRange, ...], archive: Path | None) -> str:
        """Where an object is kept: what is pruned further stays in the archive in which it is."""
        stub = self._stubs.load(name) if before else None
        return stub.archive if stub else _text(archive)

    def _keep(self, name: str, folder: Path) -> int:
        """Puts an object into an archive, durably; returns its size."""
        data = self._store.get(name)
        files.replace_file(folder / name, data)
        return len(data)

    def _archived(self, stub: Stub, archive: Path | None) -> bytes:
        folder = archive or (Path(stub.archive) if stub.archive else self._root / ARCHIVE)
        try:
            data = (folder / stub.name).read_bytes()
        except FileNotFoundError as error:
            where = f"object {stub.name} is not in the archive {folder}"
            raise MissingObject(f"{where}: name the folder that has it with megacontext restore --archive") from error
        if digest(data) != stub.name:
            raise CorruptObject(f"object {stub.name} is damaged in the archive {folder}: its bytes differ from its name")
        return data

    def _again(self, stub: Stub, data: bytes, left: tuple[BlockRange, ...]) -> Stub:
        """The stub with fewer rows left out."""
        arrays, _ = decode(memoryview(data))
        return Stub.of_tokens(stub.name, arrays, left, stub.archive)

    def _forget(self, stub: Stub) -> None:
        """An object is in its place again: away with the copy in the memory's own archive, then with its stub."""
        if not stub.archive:
            files.remove(self._root / ARCHIVE / stub.name)
        self._stubs.remove([stub.name])

    def _tidy(self) -> None:
        """Away with what a crash left: copies in the memory's own archive of objects that are in their places."""
        folder, known = self._root / ARCHIVE, self._stubs.names()
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in known and (not is_name(path.name) or self._store.has(path.name)):
                files.remove(path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else prunes or restores."""
        lock = files.FileLock(self._root / "locks" / LOCK)
        try:
            lock.acquire(wait=True, what="what is pruned")
            self._store.clean()
            self._tidy()
            yield
        finally:
            self._store.discard()
            lock.release()

    @contextmanager
    def _swept(self) -> Iterator[None]:
        """Nobody relies on an object that goes."""
        lock = self._store.sweep_lock()
        try:
            lock.acquire(wait=True, what="the objects")
            yield
        finally:
            lock.release()


def damage(root: Path) -> Iterator[tuple[str, str]]:
    """What of the pruned objects of a memory could not be restored: each one's name, and why. An archive outside of the memory
    that is not at hand is no damage."""
    store, stubs = local_store(root, LOCK), Stubs(root)
    for name in sorted(stubs.names()):
        if store.has(name):
            continue
        try:
            stub = stubs.load(name)
            folder = Path(stub.archive) if stub and stub.archive else root / ARCHIVE
            if folder.is_dir() and digest((folder / name).read_bytes()) != name:
                yield name, f"its bytes in {folder} differ from its name"
            elif stub is not None and not stub.archive and not folder.is_dir():
                yield name, f"its archive {folder} is not there"
        except FileNotFoundError:
            yield name, f"it is not in its archive {folder}"
        except CorruptObject as error:
            yield name, str(error)


def _add(detail: Detail, name: str, start: int, stop: int, first: int, size: int) -> None:
    """Blocks `start:stop` as far as they lie in the piece of `size` blocks that begins at block `first`."""
    inside = max(start - first, 0), min(stop - first, size)
    detail.pieces[name] = joined((*detail.pieces.get(name, ()), inside))


def _common(left: Iterable[BlockRange], right: Iterable[BlockRange]) -> tuple[BlockRange, ...]:
    return joined((max(a, c), min(b, d)) for a, b in left for c, d in right if max(a, c) < min(b, d))


def _without(ranges: Iterable[BlockRange], less: Iterable[BlockRange]) -> tuple[BlockRange, ...]:
    left = list(ranges)
    for start, stop in less:
        left = [part for a, b in left for part in ((a, min(b, start)), (max(a, stop), b)) if part[0] < part[1]]
    return joined(left)


def _text(archive: Path | None) -> str:
    if archive is not None and archive.exists() and not archive.is_dir():
        raise InvalidInput(f"{archive} is a file: an archive is a folder")
    return str(archive.absolute()) if archive is not None else ""
