"""Archives into memories. An archive may come from anybody, so nothing in it is believed.

Its members have to be exactly those that its manifest and its list announce, in that order; so there is no member with a
path of its own choice. Every object is hashed while it is read. Then fsck's walk checks what the branches lead to, within
what was received. All of this happens out of sight: in the staging folder of a memory, or in a folder beside a new one. Only
then are the objects, and at last the branches, put in their places. A crash before that leaves nothing that is seen.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from megacontext.errors import (
    ArchiveError,
    BranchLocked,
    CorruptObject,
    Erased,
    InvalidInput,
    MegaContextError,
    MissingObject,
    ModelMismatch,
    StorageFull,
)
from megacontext.storage import audit, files
from megacontext.storage.closure import Closure
from megacontext.storage.documents import RECORDS, load_page
from megacontext.storage.erased import load_erased, take_in
from megacontext.storage.erasure.finish import erasing
from megacontext.storage.erasure.intent import load_intent
from megacontext.storage.format import FORMAT, check_writable
from megacontext.storage.fsck import check_commits
from megacontext.storage.garbage import IMPORTS
from megacontext.storage.hashing import digest
from megacontext.storage.info import MemoryInfo, read_info
from megacontext.storage.manifest import (
    FILE_BYTES,
    LINE_BYTES,
    LIST,
    MANIFEST_BYTES,
    NAME,
    lines_of,
    parse_list,
    parse_manifest,
)
from megacontext.storage.objects import LocalObjectStore, ObjectReader
from megacontext.storage.place import FOLDERS, INFO, local_store
from megacontext.storage.refs import BRANCHES, TAGS, Refs, check_name
from megacontext.storage.tar import Member, members

# Called with the bytes done and the bytes to do.
Progress = Callable[[int, int], None]
# A kind of refs, a name and a commit.
Ref = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an archive brought into the memory at `path`: `branches` and `tags` as they are called there, with their commits;
    `objects` and `bytes` that it holds, of which `new` objects were not there before."""

    path: Path
    branches: dict[str, str]
    tags: dict[str, str]
    objects: int
    bytes: int
    new: int


def import_archive(
    source: BinaryIO, path: Path, *, prefix: str = "", author: str = "", progress: Progress = lambda done, total: None
) -> Imported:
    """Reads an archive from a stream into a new memory at `path`, or into the memory that is there: then its branches and
    tags are called `prefix`/NAME. Importing the same again changes nothing but the audit log, which names the `author`.

    Raises ArchiveError for an archive that is cut, damaged or hostile, FormatVersionError for one of a newer version,
    ModelMismatch where the memory's tokenizer is another one, InvalidInput for names that are taken or are none,
    Erased for a document that may not come back, BranchLocked while another archive is imported, StorageFull. Whatever is
    raised, nothing was imported.
    """
    if (path / INFO).exists():
        return _into_memory(source, path, prefix, author, progress)
    if prefix:
        raise InvalidInput(f"there is no memory at {path}: a name for the branches is for importing into one that exists")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InvalidInput(f"{path} holds other files; choose a memory, or a new or an empty folder")
    return _into_new(source, path, author, progress)


def _into_memory(source: BinaryIO, root: Path, prefix: str, author: str, progress: Progress) -> Imported:
    info = read_info(root)
    check_writable(root, info.format)
    if not prefix:
        raise InvalidInput(f"there is a memory at {root} already: say what its new branches are to be called with --as NAME")
    with _alone(root):
        archive = _Archive(source)
        _check_same(info, archive.manifest.memory)
        named = [(kind, check_name(f"{prefix}/{name}"), commit) for kind, name, commit in archive.refs()]
        refs = Refs(root)
        for kind, name, commit in named:
            if refs.read(kind, name) not in (None, commit):
                raise InvalidInput(f"{name!r} is there already and is something else; import under another name (--as)")
        new = archive.receive(root, progress)
        with erasing(root):
            if load_intent(root) is not None:
                raise BranchLocked("documents are being erased from this memory: run megacontext erase --finish first")
            archive.check_erased(root)
            take_in(root, archive.manifest.erased)
            _name(refs, named)
        _log(root, archive, named, new, author)
    return archive.imported(root, named, new)


def _into_new(source: BinaryIO, path: Path, author: str, progress: Progress) -> Imported:
    path = path.absolute()
    aside = path.with_name(f".{path.name}.importing")
    files.make_folder(aside / "locks")
    with _alone(aside):
        try:
            for left in aside.iterdir():  # by an import that was interrupted
                if left.name != "locks":
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            archive = _Archive(source)
            for folder in (*FOLDERS, "tokenizer"):
                files.make_folder(aside / folder)
            files.sync_all(sorted({(aside / folder).parent for folder in FOLDERS}), files.sync_folder)
            for name, data in archive.tokenizer.items():
                files.replace_file(aside / "tokenizer" / name, data)
            new = archive.receive(aside, progress)
            take_in(aside, archive.manifest.erased)
            archive.check_erased(aside)
            refs = Refs(aside)
            _name(refs, list(archive.refs()))
            refs.set_head(archive.manifest.head)
            _log(aside, archive, list(archive.refs()), new, author)
            files.replace_file(aside / INFO, replace(archive.manifest.memory, format=FORMAT).to_bytes())
            files.rename(aside, path)
            files.sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return archive.imported(path, list(archive.refs()), new)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """The one import into a memory; the collector of garbage leaves alone what it puts down."""
    lock = files.FileLock(root / "locks" / IMPORTS)
    try:
        lock.acquire(wait=False, what=f"{root} by another import")
        yield
    finally:
        lock.release()


def _check_same(mine: MemoryInfo, theirs: MemoryInfo) -> None:
    if mine.tokenizer != theirs.tokenizer:
        raise ModelMismatch(
            f"the tokens of this archive were made by another tokenizer ({theirs.tokenizer[:12] or 'none'}, not "
            f"{mine.tokenizer[:12] or 'none'}): import it into a new memory"
        )
    if mine.segment_blocks != theirs.segment_blocks:
        raise ModelMismatch(
            f"this archive is cut into segments of {theirs.segment_blocks} blocks, this memory of {mine.segment_blocks}: "
            "import it into a new memory"
        )


def _name(refs: Refs, named: list[Ref]) -> None:
    """Puts refs where there are none; takes back what it put where one cannot be."""
    done: list[Ref] = []
    try:
        for kind, name, commit in named:
            if refs.read(kind, name) != commit:
                refs.move(kind, name, None, commit)
                done.append((kind, name, commit))
    except BaseException:
        for kind, name, commit in done:
            with suppress(MegaContextError):
                refs.move(kind, name, commit, None)
        raise


def _log(root: Path, archive: _Archive, named: list[Ref], new: int, author: str) -> None:
    audit.append(root, "import", {"refs": len(named), "objects": archive.manifest.objects, "new": new}, author=author)


class _Received(LocalObjectStore):
    """Where the objects of an archive are staged. It reads nothing but those, whatever else the memory holds."""

    def __init__(self, root: Path, names: dict[str, tuple[int, str]]) -> None:
        super().__init__(root / "objects", root / "staging" / IMPORTS)
        self._names = names

    def get(self, name: str) -> bytes:
        return super().get(self._listed(name))

    def view(self, name: str) -> memoryview:
        return super().view(self._listed(name))

    def _listed(self, name: str) -> str:
        if name not in self._names:
            raise MissingObject(f"object {name!r:.70} is not in this archive")
        return name


class _Archive:
    """An archive while it is read: everything in front of its objects at once, these by `receive`."""

    def __init__(self, source: BinaryIO) -> None:
        self._members = members(source)
        self.manifest = parse_manifest(self._next(NAME).read(MANIFEST_BYTES))
        listing = self._next(LIST)
        if listing.size > LINE_BYTES * self.manifest.objects:
            raise ArchiveError(f"{LIST} in this archive is too long for {self.manifest.objects} objects")
        self._listed = parse_list(lines_of(listing.chunks()), self.manifest)
        self.tokenizer: dict[str, bytes] = {}
        for name, expected in sorted(self.manifest.memory.tokenizer_files.items()):
            self.tokenizer[name] = self._next(f"tokenizer/{name}").read(FILE_BYTES)
            if digest(self.tokenizer[name]) != expected:
                raise ArchiveError(f"tokenizer/{name} in this archive is damaged")

    def refs(self) -> Iterator[Ref]:
        """Its branches and tags."""
        yield from ((BRANCHES, name, commit) for name, commit in self.manifest.branches.items())
        yield from ((TAGS, name, commit) for name, commit in self.manifest.tags.items())

    def receive(self, root: Path, progress: Progress) -> int:
        """Makes its objects, all of which are checked, durable objects of the memory at `root`; returns how many were not
        there yet. Nothing names them yet."""
        if self.manifest.object_bytes > shutil.disk_usage(root).free:
            raise StorageFull(f"this archive holds {self.manifest.object_bytes} bytes; there is less room than that at {root}")
        store = _Received(root, self._listed)
        store.clean()
        try:
            done = 0
            for name, (size, _) in self._listed.items():
                member = self._next(f"objects/{name[:2]}/{name}", size)
                try:
                    store.receive(name, member.chunks())
                except CorruptObject as error:
                    raise ArchiveError(f"this archive is damaged: {error}") from error
                done += size
                progress(done, self.manifest.object_bytes)
            if (more := next(self._members, None)) is not None:
                raise ArchiveError(f"this archive holds {more.name!r:.99}, which it does not list")
            self._check(store)
            new = store.staged
            store.sync()
        finally:
            store.clean()
        return new

    def _check(self, store: LocalObjectStore) -> None:
        commits = {f"{kind}/{name}": commit for kind, name, commit in self.refs()}
        try:
            findings, reached = check_commits(store, self.manifest.memory.segment_blocks, commits)
        except (MegaContextError, ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
            raise ArchiveError(f"this archive holds what is no memory: {error}") from error
        if findings:
            raise ArchiveError(f"this archive holds what is no memory: {findings[0]}")
        if idle := self._listed.keys() - reached:
            raise ArchiveError(f"no branch of this archive needs object {min(idle)}, which it holds")

    def check_erased(self, root: Path) -> None:
        """Raises Erased for a document that was erased from the memory at `root`, where the objects are by now."""
        erased = load_erased(root)
        if not erased:
            return
        reader = ObjectReader(local_store(root, "unused"), keep=256)
        for named in Closure(reader).of(commit for _, _, commit in self.refs()):
            for record in load_page(reader, named.name) if named.kind == RECORDS else ():
                if reason := erased.refuses(record):
                    raise Erased(
                        f"{record.source} of this archive may not come in: {reason}; nothing was imported; export "
                        "branches without it"
                    )

    def _next(self, name: str, size: int | None = None) -> Member:
        member = next(self._members, None)
        if member is None or member.name != name:
            found = "it ends" if member is None else f"it has {member.name!r:.99}"
            raise ArchiveError(f"{found} where this archive should have {name}: it is not as megacontext export writes it")
        if size is not None and member.size != size:
            raise ArchiveError(f"{name} has {member.size} bytes in this archive, not the {size} that it lists")
        return member

    def imported(self, path: Path, named: list[Ref], new: int) -> Imported:
        """What is to be told of it."""
        branches, tags = ({name: commit for kind, name, commit in named if kind == of} for of in (BRANCHES, TAGS))
        manifest = self.manifest
        return Imported(path=path, branches=branches, tags=tags, objects=manifest.objects, bytes=manifest.object_bytes, new=new)
