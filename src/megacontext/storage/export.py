"""A memory, or some of its branches, as one archive: everything that the branches need, in one stream.

Archives of equal content are equal, byte for byte. What is written is checked against its name on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from megacontext.core.ranges import BlockRange
from megacontext.errors import (
    AccessDenied,
    BranchLocked,
    CorruptObject,
    DetailPruned,
    FormatVersionError,
    InvalidInput,
    StorageError,
)
from megacontext.storage import tar
from megacontext.storage.closure import Closure
from megacontext.storage.commit import KIND as COMMIT
from megacontext.storage.commit import load_commit
from megacontext.storage.erased import load_erased
from megacontext.storage.hashing import digest
from megacontext.storage.info import damaged_files
from megacontext.storage.journal import journal_frames
from megacontext.storage.manifest import LIST, NAME, OBJECT_BYTES, STUB, VERSIONS, Listed, Manifest, member_path
from megacontext.storage.objects import LocalObjectStore, ObjectReader
from megacontext.storage.refs import TAGS, quoted
from megacontext.storage.repository import MAIN, Repository
from megacontext.storage.stubs import ELSEWHERE
from megacontext.storage.whole import WholeStore

ALL = "all"
# Called with the bytes done and the bytes to do.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Export:
    """An archive that is ready to be written: its `manifest`, the objects that it `listed`, and `behind`: branches whose
    newest acknowledged writes are not in it, since somebody is writing them. `made` are objects that only the archive has, and
    the stubs of pruned objects that it is made without. `archived` pruned objects are in it, of `left_out` there are stubs."""

    root: Path
    manifest: Manifest
    listed: Listed
    behind: tuple[str, ...]
    made: dict[str, bytes]

    @property
    def archived(self) -> int:
        """How many pruned objects it has whole."""
        return len(self.manifest.pruned) - self.left_out

    @property
    def left_out(self) -> int:
        """Of how many pruned objects it has stubs only."""
        return sum(1 for _, kind in self.listed.values() if kind == STUB)

    @property
    def size(self) -> int:
        """The length of the archive in bytes."""
        objects = sum(_member_size(member_path(name, kind), size) for name, (size, kind) in self.listed.items())
        return sum(len(part) for part in self._front()) + objects + len(tar.END)

    def parts(self, progress: Progress = lambda done, total: None) -> Iterator[bytes | memoryview]:
        """The archive, piece by piece; no piece is larger than an object. Raises CorruptObject or MissingObject where the
        memory is damaged."""
        store, done = WholeStore(self.root), 0
        yield from self._front()
        for name, (size, kind) in self.listed.items():
            yield from _member(member_path(name, kind), self.made[name] if name in self.made else store.view(name))
            done += size
            progress(done, self.manifest.object_bytes)
        yield tar.END

    def _front(self) -> Iterator[bytes | memoryview]:
        yield from _member(NAME, self.manifest.to_bytes())
        yield from _member(LIST, self.listed.to_bytes())
        for name in sorted(self.manifest.memory.tokenizer_files):
            yield from _member(f"tokenizer/{name}", (self.root / "tokenizer" / name).read_bytes())


def prepare_export(
    repository: Repository,
    *,
    at: str | None = None,
    branches: str | None = None,
    history: bool = False,
    without_pruned: bool = False,
) -> Export:
    """Finds out what belongs into an archive of the current branch; or of what a reference (a branch, tag or commit) names,
    or of `branches` ("all", or names separated by commas).

    Without `history` each commit stands alone: it gets no parents, and so another name. Tags of exported commits come
    along. What a branch has acknowledged and not committed yet is committed first, unless somebody is writing it.

    What is pruned comes along from its archive, and is pruned again where it is imported. `without_pruned` leaves it out: then
    there are its gists, and `restore --archive` brings its tokens back from this memory's archive.

    Raises UnknownReference, DetailPruned where an archive is not at hand, InvalidInput for both `at` and `branches`,
    CorruptObject or MissingObject where the memory is damaged.
    """
    root, info = repository.root, repository.info
    if repository.deny:
        raise AccessDenied("an export would read what this reader is denied: open the memory without deny")
    if damaged := damaged_files(root, info):
        raise CorruptObject(f"tokenizer/{min(damaged)} is {damaged[min(damaged)]}; run `megacontext fsck`")
    names = _chosen(repository, at, branches)
    behind = tuple(name for name in names if not _settled(repository, name))
    heads = {name: repository.refs.branch(name) for name in names} or {MAIN: repository.resolve(at)}
    store, made = WholeStore(root), dict[str, bytes]()
    stubs = _Pruned(store, without_pruned, made)
    reader = ObjectReader(store, keep=256)
    alone = {commit: commit if history else _alone(reader, commit, made) for commit in heads.values()}
    listed = Listed()
    for named in Closure(reader, history=history).of(heads.values()):
        name = alone.get(named.name, named.name) if named.kind == COMMIT else named.name
        listed.setdefault(name, stubs.listed(name, named.kind) or (_size(store, name, made), named.kind))
    tags = {name: commit for name in repository.tags() if (commit := repository.refs.read(TAGS, name))}
    exported = listed if history else alone
    manifest = Manifest(
        memory=info,
        head=repository.head if repository.head in heads else next(iter(heads)),
        branches={name: alone[commit] for name, commit in heads.items()},
        tags={name: alone.get(commit, commit) for name, commit in tags.items() if commit in exported},
        history=history,
        erased=load_erased(root),
        objects=len(listed),
        object_bytes=sum(size for size, _ in listed.values()),
        pruned=stubs.ranges,
        version=VERSIONS[bool(stubs.ranges)],
    )
    return Export(root=root, manifest=manifest, listed=listed, behind=behind, made=made)


class _Pruned:
    """The pruned ones among the objects that are exported: `ranges` of rows by name."""

    def __init__(self, store: WholeStore, left_out: bool, made: dict[str, bytes]) -> None:
        self._store, self._left_out, self._made = store, left_out, made
        self._names = store.stubs.names()
        self.ranges: dict[str, tuple[BlockRange, ...]] = {}

    def listed(self, name: str, kind: str) -> tuple[int, str] | None:
        """The size and the kind that a pruned object is listed with; None for one that is in its place."""
        stub = self._store.stubs.load(name) if name in self._names and not self._store.has(name) else None
        if stub is None:
            return None
        self.ranges[name] = stub.ranges
        if self._left_out:
            # Nobody else need know where this memory's archive is.
            self._made[name] = replace(stub, archive=ELSEWHERE).to_bytes()
            return len(self._made[name]), STUB
        try:
            return self._store.stubs.place(stub).stat().st_size, kind
        except (FileNotFoundError, NotADirectoryError) as error:
            folder = self._store.stubs.place(stub).parent
            raise DetailPruned(
                f"the archive {folder} is not at hand, which has what was pruned: make it reachable, run megacontext restore "
                "--archive FOLDER, or export --without-pruned"
            ) from error


def _chosen(repository: Repository, at: str | None, branches: str | None) -> list[str]:
    """The branches that are exported under their names; none if `at` is something else."""
    if at is not None and branches is not None:
        raise InvalidInput("give either a reference to export or branches, not both")
    if branches == ALL:
        return repository.branches()
    if branches is not None:
        return sorted({name.strip() for name in branches.split(",")})
    if at is None:
        return [repository.head]
    return [at] if at in repository.branches() else []


def _settled(repository: Repository, branch: str) -> bool:
    """Commits what a branch holds beyond its commit; False where somebody else is writing it."""
    if not journal_frames(repository.root / "journal" / f"{quoted(branch)}.wal", repository.refs.branch(branch)):
        return True
    try:
        with repository.transaction(branch):  # which begins with it
            pass
    except (BranchLocked, FormatVersionError):
        return False
    return True


def _alone(reader: ObjectReader, name: str, made: dict[str, bytes]) -> str:
    """The name of a commit without its past, which is made."""
    data = replace(load_commit(reader, name), parents=()).to_bytes()
    made[digest(data)] = data
    return digest(data)


def _size(store: LocalObjectStore, name: str, made: dict[str, bytes]) -> int:
    if name in made:
        return len(made[name])
    found = store.stat(name)
    if found is None:
        return len(store.get(name))  # which says why it is not there
    if found.size > OBJECT_BYTES:
        raise StorageError(f"object {name} has {found.size} bytes; an archive holds objects of up to {OBJECT_BYTES}")
    return found.size


def _member(name: str, data: bytes | memoryview) -> Iterator[bytes | memoryview]:
    yield tar.header(name, len(data))
    yield data
    yield tar.padding(len(data))


def _member_size(name: str, size: int) -> int:
    return len(tar.header(name, size)) + size + len(tar.padding(size))
