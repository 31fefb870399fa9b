"""Archives into memories. An archive may come from anybody, so nothing in it is believed.

Its members have to be exactly those that its manifest and its list announce, in that order; so there is no member with a
path of its own choice. Every object is hashed while it is read. Then fsck's walk checks what the branches lead to, within
what was received. All of this happens out of sight: in the staging folder of a memory, or in a folder beside a new one. Only
then are the objects, and at last the branches, put in their places. A crash before that leaves nothing that is seen.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
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
    ModelMismatch,
    StorageFull,
)
from megacontext.storage import audit, files
from megacontext.storage.erased import ErasedList, load_erased, take_in
from megacontext.storage.erasure.finish import erasing
from megacontext.storage.erasure.intent import load_intent
from megacontext.storage.erasure.rewrite import Rewritten
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
    OBJECT_BYTES,
    STUB,
    lines_of,
    member_path,
    parse_list,
    parse_manifest,
)
from megacontext.storage.place import FOLDERS, INFO
from megacontext.storage.received import Received, Remakes, refused, without
from megacontext.storage.refs import BRANCHES, TAGS, Refs, check_name
from megacontext.storage.tar import Member, members
from megacontext.storage.whole import WholeReader

# Called with the bytes done and the bytes to do.
Progress = Callable[[int, int], None]
# A kind of refs, a name and a commit.
Ref = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an archive brought into the memory at `path`: `branches` and `tags` as they are called there, with their commits;
    `objects` and `bytes` that it holds, of which `new` objects were not there before. `pruned` of them were archived again, of
    `left_out` there are stubs only. `skipped` are sources that may not come in, and were left out; `dropped` fingerprints of
    layers that went with them, since their GistNet was not at hand."""

    path: Path
    branches: dict[str, str]
    tags: dict[str, str]
    objects: int
    bytes: int
    new: int
    pruned: int
    left_out: int
    skipped: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class _Options:
    """How an archive is taken in; see `import_archive`."""

    author: str
    skip_erased: bool
    remake: Remakes
    progress: Progress


def import_archive(
    source: BinaryIO,
    path: Path,
    *,
    prefix: str = "",
    skip_erased: bool = False,
    remake: Remakes = lambda spec: None,
    author: str = "",
    progress: Progress = lambda done, total: None,
) -> Imported:
    """Reads an archive from a stream into a new memory at `path`, or into the memory that is there: then its branches and
    tags are called `prefix`/NAME. Importing the same again changes nothing but the audit log, which names the `author`.

    With `skip_erased` documents that may not come back are left out, in every commit, so that commits which held them have
    other names here; `remake` makes the gists above them again, and layers for which it has nothing are dropped.

    Raises ArchiveError for an archive that is cut, damaged or hostile, FormatVersionError for one of a newer version,
    ModelMismatch where the memory's tokenizer is another one, InvalidInput for names that are taken or are none,
    Erased for a document that may not come back, BranchLocked while another archive is imported, StorageFull. Whatever is
    raised, nothing was imported.
    """
    options = _Options(author, skip_erased, remake, progress)
    if (path / INFO).exists():
        return _into_memory(source, path, prefix, options)
    if prefix:
        raise InvalidInput(f"there is no memory at {path}: a name for the branches is for importing into one that exists")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InvalidInput(f"{path} holds other files; choose a memory, or a new or an empty folder")
    return _into_new(source, path, options)


def _into_memory(source: BinaryIO, root: Path, prefix: str, options: _Options) -> Imported:
    info = read_info(root)
    check_writable(root, info.format)
    if not prefix:
        raise InvalidInput(f"there is a memory at {root} already: say what its new branches are to be called with --as NAME")
    with _alone(root):
        archive = _Archive(source, root)
        _check_same(info, archive.manifest.memory)
        refs = Refs(root)
        if not options.skip_erased:
            _check_free(refs, archive.named(prefix))
        archive.receive(load_erased(root), options)
        with erasing(root):
            if load_intent(root) is not None:
                raise BranchLocked("documents are being erased from this memory: run megacontext erase --finish first")
            # Somebody may have erased more while the archive was read.
            archive.leave_out(load_erased(root), options)
            _check_free(refs, archive.named(prefix))
            archive.settle()
            take_in(root, archive.manifest.erased)
            _name(refs, list(archive.named(prefix)))
        _log(root, archive, list(archive.named(prefix)), options.author)
    return archive.imported(root, list(archive.named(prefix)))


def _into_new(source: BinaryIO, path: Path, options: _Options) -> Imported:
    path = path.absolute()
    aside = path.with_name(f".{path.name}.importing")
    files.make_folder(aside / "locks")
    with _alone(aside):
        try:
            for left in aside.iterdir():  # by an import that was interrupted
                if left.name != "locks":
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            archive = _Archive(source, aside)
            for folder in (*FOLDERS, "tokenizer"):
                files.make_folder(aside / folder)
            files.sync_all(sorted({(aside / folder).parent for folder in FOLDERS}), files.sync_folder)
            for name, data in archive.tokenizer.items():
                files.replace_file(aside / "tokenizer" / name, data)
            take_in(aside, archive.manifest.erased)
            archive.receive(load_erased(aside), options)
            archive.settle()
            refs = Refs(aside)
            _name(refs, list(archive.named()))
            refs.set_head(archive.manifest.head)
            _log(aside, archive, list(archive.named()), options.author)
            files.replace_file(aside / INFO, replace(archive.manifest.memory, format=FORMAT).to_bytes())
            files.rename(aside, path)
            files.sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return archive.imported(path, list(archive.named()))


def _check_free(refs: Refs, named: Iterable[Ref]) -> None:
    """Raises InvalidInput for names that are none, or are taken by something else."""
    for kind, name, commit in named:
        if refs.read(kind, check_name(name)) not in (None, commit):
            raise InvalidInput(f"{name!r} is there already and is something else; import under another name (--as)")


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


def _log(root: Path, archive: _Archive, named: list[Ref], author: str) -> None:
    details = {"refs": len(named), "objects": archive.manifest.objects, "new": archive.new, "skipped": len(archive.skipped)}
    audit.append(root, "import", details, author=author)


class _Archive:
    """An archive for the memory at `root` while it is read: everything in front of its objects at once, these by `receive`."""

    def __init__(self, source: BinaryIO, root: Path) -> None:
        self._root = root
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
        if unknown := self.manifest.pruned.keys() - self._listed.keys():
            raise ArchiveError(f"object {min(unknown)} is pruned in this archive, and not listed")
        self._store = Received(root, self._listed, self.manifest.pruned)
        self._done = Rewritten()
        self.new = 0
        self.skipped: tuple[str, ...] = ()

    def named(self, prefix: str = "") -> Iterator[Ref]:
        """Its branches and tags as they are called then, with their commits, written anew where something was left out."""
        for kind, refs in ((BRANCHES, self.manifest.branches), (TAGS, self.manifest.tags)):
            for name, commit in refs.items():
                yield kind, f"{prefix}/{name}" if prefix else name, self._done.renamed.get(commit, commit)

    def receive(self, erased: ErasedList, options: _Options) -> None:
        """Stages its objects, all of which are checked, without what was `erased`."""
        if self.manifest.object_bytes > shutil.disk_usage(self._root).free:
            size = self.manifest.object_bytes
            raise StorageFull(f"this archive holds {size} bytes; there is less room than that at {self._root}")
        store, done = self._store, 0
        store.clean()
        try:
            for name, (size, kind) in self._listed.items():
                self._take(name, kind, self._next(member_path(name, kind), size))
                done += size
                options.progress(done, self.manifest.object_bytes)
            if (more := next(self._members, None)) is not None:
                raise ArchiveError(f"this archive holds {more.name!r:.99}, which it does not list")
            self._check()
        except BaseException:
            store.clean()
            raise
        self.leave_out(erased, options)

    def leave_out(self, erased: ErasedList, options: _Options) -> None:
        """Takes out documents that were erased from the memory; raises Erased where that is not wanted."""
        try:
            commits = [commit for _, _, commit in self.named()]
            gone = refused(WholeReader(self._store), commits, erased)
            if gone and not options.skip_erased:
                raise Erased(
                    f"{gone[0].source} of this archive may not come in: {erased.refuses(gone[0])}; nothing was imported; "
                    "--skip-erased imports the rest"
                )
            if gone:
                blocks = self.manifest.memory.segment_blocks
                done = without(self._store, blocks, commits, gone, options.remake)
                before = {old: done.renamed.get(new, new) for old, new in self._done.renamed.items()}
                self._done = Rewritten(done.renamed | before, self._done.dropped | done.dropped)
                self.skipped = tuple(sorted({*self.skipped, *(record.source for record in gone)}))
        except BaseException:
            self._store.clean()
            raise

    def settle(self) -> None:
        """Makes its objects durable objects of the memory. Nothing names them yet."""
        try:
            self.new = self._store.settle()
        finally:
            self._store.clean()

    def _take(self, name: str, kind: str, member: Member) -> None:
        if kind == STUB:
            self._store.take_stub(name, member.read(OBJECT_BYTES))
            return
        try:
            self._store.receive(name, member.chunks())
        except CorruptObject as error:
            raise ArchiveError(f"this archive is damaged: {error}") from error

    def _check(self) -> None:
        commits = {f"{kind}/{name}": commit for kind, name, commit in self.named()}
        blocks = self.manifest.memory.segment_blocks
        try:
            findings, reached = check_commits(self._store, blocks, commits, self._store.stubs)
        except (MegaContextError, ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
            raise ArchiveError(f"this archive holds what is no memory: {error}") from error
        if findings:
            raise ArchiveError(f"this archive holds what is no memory: {findings[0]}")
        if idle := self._listed.keys() - reached:
            raise ArchiveError(f"no branch of this archive needs object {min(idle)}, which it holds")
        self._store.check_pruned()

    def _next(self, name: str, size: int | None = None) -> Member:
        member = next(self._members, None)
        if member is None or member.name != name:
            found = "it ends" if member is None else f"it has {member.name!r:.99}"
            raise ArchiveError(f"{found} where this archive should have {name}: it is not as megacontext export writes it")
        if size is not None and member.size != size:
            raise ArchiveError(f"{name} has {member.size} bytes in this archive, not the {size} that it lists")
        return member

    def imported(self, path: Path, named: list[Ref]) -> Imported:
        """What is to be told of it."""
        branches, tags = ({name: commit for kind, name, commit in named if kind == of} for of in (BRANCHES, TAGS))
        left_out = sum(1 for _, kind in self._listed.values() if kind == STUB)
        return Imported(
            path=path,
            branches=branches,
            tags=tags,
            objects=self.manifest.objects,
            bytes=self.manifest.object_bytes,
            new=self.new,
            pruned=len(self.manifest.pruned) - left_out,
            left_out=left_out,
            skipped=self.skipped,
            dropped=tuple(sorted(self._done.dropped)),
        )
