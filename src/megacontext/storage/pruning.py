"""Prune: raw tokens of chosen documents go to an archive, their gists stay; restore brings the same bytes back.

Segments, pages and originals are moved as they are, under their names, and a stub stays in their place (see `stubs`). First
the archive has an object, durably, then there is its stub, then it is removed: a crash leaves each object as it was or as it
is to be, and nothing is in neither place. What a protected tag holds stays, and so does the end of a branch that somebody is
writing: what is written behind it would be sealed together with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from megacontext.core.ranges import BlockRange, joined
from megacontext.errors import BranchLocked, CorruptObject, InvalidInput
from megacontext.storage import files
from megacontext.storage.commit import Commit, load_commit, load_documents, load_tokens
from megacontext.storage.documents import DocumentRecord, Documents, load_page
from megacontext.storage.hashing import digest, is_name
from megacontext.storage.merkle import get, iterate
from megacontext.storage.objects import LocalObjectStore, ObjectReader
from megacontext.storage.place import Place, local_store
from megacontext.storage.refs import BRANCHES, TAGS
from megacontext.storage.segment import PAGE_BLOCKS, TokenTree
from megacontext.storage.stubs import ARCHIVE, LOCK, ORIGINAL, TOKENS, Stub, Stubs
from megacontext.storage.transaction import Transaction

Choice = Callable[[DocumentRecord], bool]


@dataclass
class Detail:
    """Where the raw detail of chosen documents lies: rows of `pieces` (segments and pages) by name, and `originals`. `spans`
    are their blocks in the newest commit. `keepers` maps what keeps some of it to why."""

    pieces: dict[str, tuple[BlockRange, ...]] = field(default_factory=dict)
    originals: set[str] = field(default_factory=set)
    spans: tuple[BlockRange, ...] = ()
    keepers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What was moved: `objects` whose detail went or came back, with `rows` blocks and, for whole objects, `bytes`."""

    objects: int
    rows: int
    bytes: int


class Pruner:
    """Prunes and restores in a memory."""

    def __init__(self, place: Place) -> None:
        self._place, self._root, self._size = place, place.root, place.segment_blocks
        self._store: LocalObjectStore = local_store(place.root, LOCK)
        self._stubs = Stubs(place.root)
        self._reader = ObjectReader(self._store, keep=256, stubs=self._stubs)

    def find(self, head: str, chosen: Choice) -> Detail:
        """The raw detail of the documents that are `chosen`, in a commit and all before it."""
        detail, others = Detail(), set[str]()
        for number, commit in enumerate(self._history(head)):
            spans = self._of_commit(commit, chosen, detail, others)
            if number == 0:
                detail.spans = tuple(spans)
        detail.originals -= others
        return detail

    @contextmanager
    def held(self, detail: Detail, *, commit: bool = False) -> Iterator[dict[str, str]]:
        """For ourselves the branches that end with pages of it, so that nothing is written behind them meanwhile; with `commit`
        what their journals hold is committed. Gives those that somebody else writes, with who does."""
        busy: dict[str, str] = {}
        with ExitStack() as stack:
            for name in self._place.refs.names(BRANCHES):
                pages = load_tokens(self._reader, self._commit(BRANCHES, name)).strand.pages
                if detail.pieces.keys().isdisjoint(pages):
                    continue
                try:
                    stack.enter_context(Transaction(self._place, name) if commit else _locked(self._place, name))
                except BranchLocked as error:
                    busy[name] = str(error)
            yield busy

    def without_kept(self, detail: Detail, busy: Iterable[str] = ()) -> Detail:
        """What of it may go: no object of a protected tag, and no page at the end of a branch that is `busy`."""
        rest = Detail(dict(detail.pieces), set(detail.originals), detail.spans)
        for name in busy:
            ends = set(load_tokens(self._reader, self._commit(BRANCHES, name)).strand.pages)
            _keep_out(rest, ends, f"branch {name}", "it is being written, and these are its end: try again when it is not")
        for name in self._place.refs.names(TAGS):
            if self._place.refs.protected(TAGS, name):
                whole = self._whole(self._commit(TAGS, name))
                _keep_out(rest, whole, f"tag {name}", f"it is protected: megacontext tag --unprotect {name} lets them go")
        return rest

    def going(self, detail: Detail, head: str) -> tuple[BlockRange, ...]:
        """The blocks of a commit whose raw tokens would go with it, or would come back."""
        tree = load_tokens(self._reader, load_commit(self._reader, head))
        spots = self._spots(tree, detail.spans)
        return joined((first + a, first + b) for name, first, a, b in spots if name in detail.pieces)

    def prune(self, detail: Detail, archive: Path | None = None) -> Moved:
        """Moves it to the archive, a folder (None: the memory's own). Done again after a crash it goes on. The caller has the
        branches that end with pages of it (`held`)."""
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

    def restore(self, detail: Detail | None = None, archive: Path | None = None, *, look: bool = False) -> Moved:
        """Brings detail back (None: all there is), from the archive that each stub names, or from this one. Raises
        MissingObject where it does not have an object, CorruptObject where its bytes are others; what came before is back.
        With `look` nothing is changed, and it is told what would come back."""
        objects = rows = size = 0
        with ExitStack() as stack:
            if not look:
                stack.enter_context(self._alone())
            for stub, back in self._wanted(detail):
                if self._store.has(stub.name):
                    if not look:
                        self._forget(stub)
                    continue
                data = self._stubs.archived(stub.name, archive)
                left = _without(stub.ranges, back)
                objects, rows = objects + 1, rows + sum(stop - start for start, stop in back)
                size += 0 if left else len(data)
                if look:
                    continue
                if left:
                    self._stubs.write(Stub.of_object(stub.name, data, stub.kind, left, stub.archive))
                    continue
                self._store.put(data)
                self._store.sync()
                self._forget(stub)
        return Moved(objects=objects, rows=rows, bytes=size)

    def all(self, head: str) -> Detail:
        """All that was pruned anywhere, for `going` by the blocks of a commit."""
        commit = load_commit(self._reader, head)
        stubs = [stub for name in self._stubs.names() if (stub := self._stubs.load(name)) is not None]
        pieces = {stub.name: stub.ranges for stub in stubs if stub.kind == TOKENS}
        return Detail(pieces, {stub.name for stub in stubs if stub.kind == ORIGINAL}, ((0, commit.blocks),))

    def out_of_reach(self, head: str) -> tuple[tuple[BlockRange, ...], frozenset[str]]:
        """What of a commit cannot be read in any archive that is at hand now: blocks, and names of originals."""
        lost = {name for name in self._stubs.names() if not self._store.has(name) and not self._stubs.at_hand(name)}
        ranges: list[BlockRange] = []
        commit = load_commit(self._reader, head)
        for name, first, _, _ in self._spots(load_tokens(self._reader, commit), ((0, commit.blocks),)) if lost else ():
            stub = self._stubs.load(name) if name in lost else None
            ranges += ((first + start, first + stop) for start, stop in (stub.ranges if stub else ()))
        return joined(ranges), frozenset(lost)

    def _wanted(self, detail: Detail | None) -> Iterator[tuple[Stub, tuple[BlockRange, ...]]]:
        """The stubs that detail is about, and which of their rows."""
        names = self._stubs.names()
        for name in sorted(names if detail is None else names & {*detail.pieces, *detail.originals}):
            stub = self._stubs.load(name)
            if stub is not None:
                back = stub.ranges if detail is None else _common(stub.ranges, detail.pieces.get(name, ()))
                if back or stub.kind == ORIGINAL or self._store.has(name):
                    yield stub, back

    def _history(self, head: str) -> Iterator[Commit]:
        seen, todo = {head}, [head]
        while todo:
            commit = load_commit(self._reader, todo.pop())
            yield commit
            todo += [name for name in commit.parents if name not in seen and self._store.has(name)]
            seen |= set(commit.parents)

    def _of_commit(self, commit: Commit, chosen: Choice, detail: Detail, others: set[str]) -> tuple[BlockRange, ...]:
        """Adds what a commit holds of the chosen documents; returns their blocks."""
        records = self._records(commit)
        mine = [record for record in records if not record.open and chosen(record)]
        detail.originals |= {record.original for record in mine if record.original}
        others |= {record.original for record in records if record.original and not chosen(record)}
        spans = joined(record.span for record in mine if record.blocks)
        for name, _, start, stop in self._spots(load_tokens(self._reader, commit), spans):
            detail.pieces[name] = joined((*detail.pieces.get(name, ()), (start, stop)))
        return spans

    def _spots(self, tree: TokenTree, spans: Iterable[BlockRange]) -> Iterator[tuple[str, int, int, int]]:
        """Where blocks lie: for each piece its name, its first block, and which of its rows they are, start and stop."""
        size, sealed = self._size, tree.strand.segments.count * self._size
        for start, stop in spans:
            for number in range(start // size, -(-min(stop, sealed) // size)):
                first = number * size
                name = get(self._reader, tree.strand.segments, number)
                yield name, first, max(start - first, 0), min(stop - first, size)
            for number in range(max(start - sealed, 0) // PAGE_BLOCKS, -(-max(stop - sealed, 0) // PAGE_BLOCKS)):
                first = sealed + number * PAGE_BLOCKS
                yield tree.strand.pages[number], first, max(start - first, 0), min(stop - first, PAGE_BLOCKS)

    def _records(self, commit: Commit) -> list[DocumentRecord]:
        strand = load_documents(self._reader, commit).records
        newest = [record for name in strand.pages for record in load_page(self._reader, name)]
        return list(Documents(self._reader, strand, tuple(newest)))

    def _commit(self, kind: str, name: str) -> Commit:
        return load_commit(self._reader, str(self._place.refs.read(kind, name)))

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
            if stub is None or (stub.archive and not stubs.place(stub).parent.is_dir()):
                continue
            if digest(stubs.place(stub).read_bytes()) != name:
                yield name, f"its bytes in {stubs.place(stub).parent} differ from its name"
        except (FileNotFoundError, NotADirectoryError) as error:
            yield name, f"it is not in its archive {Path(error.filename).parent}"
        except CorruptObject as error:
            yield name, str(error)


def _keep_out(detail: Detail, kept: set[str], keeper: str, why: str) -> None:
    """Takes objects that are kept out of what may go."""
    if held := kept & {*detail.pieces, *detail.originals}:
        detail.keepers[keeper] = why
        detail.originals -= held
        for name in held:
            detail.pieces.pop(name, None)


@contextmanager
def _locked(place: Place, branch: str) -> Iterator[None]:
    """A branch for ourselves; raises BranchLocked where somebody writes it."""
    lock = files.FileLock(place.lock(branch))
    try:
        lock.acquire(wait=False, what=f"branch {branch!r}")
        yield
    finally:
        lock.release()


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
