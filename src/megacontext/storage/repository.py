"""A memory on the local disk: create it, open it, read it by snapshots, write it by branch."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from megacontext.errors import (
    AccessDenied,
    CorruptObject,
    InvalidInput,
    MemoryExists,
    MissingObject,
    RefConflict,
    UnknownReference,
)
from megacontext.storage import files
from megacontext.storage.access import Access, refuse_denied, shown_commit
from megacontext.storage.ancestry import merge_bases
from megacontext.storage.commit import Commit, load_commit
from megacontext.storage.compare import Change, commit_changes, shown_changes, snapshot_changes
from megacontext.storage.documents import DocumentTree
from megacontext.storage.drop import LayerDrop
from megacontext.storage.erasure.finish import resume
from megacontext.storage.format import check_writable
from megacontext.storage.fsck import Report, check
from megacontext.storage.gists import LayerSpec
from megacontext.storage.guard import Guard
from megacontext.storage.hashing import digest
from megacontext.storage.hold import BranchHold
from megacontext.storage.info import MemoryInfo, read_info
from megacontext.storage.journal import journal_frames
from megacontext.storage.labelling import Labelling
from megacontext.storage.labels import Labels, checked_names, load_labels
from megacontext.storage.layers import LayerWriter
from megacontext.storage.objects import ObjectReader
from megacontext.storage.place import FOLDERS, INFO, Place, local_store
from megacontext.storage.pruning import Pruner
from megacontext.storage.refs import BRANCHES, TAGS, Refs, check_name, suggestion
from megacontext.storage.repacker import Repacker
from megacontext.storage.revisions import HEAD, follow, parse
from megacontext.storage.segment import SEGMENT_BLOCKS, TokenTree
from megacontext.storage.snapshot import Snapshot
from megacontext.storage.state import Base, BranchState, journal_spec
from megacontext.storage.stubs import Stubs
from megacontext.storage.transaction import Transaction
from megacontext.storage.underway import UnderWay, under_way
from megacontext.storage.whole import ArchiveReader, WholeStore
from megacontext.storage.writer import BranchWriter

MAIN = "main"
# A reader that meets a commit between its steps starts again; each try takes milliseconds.
_TRIES = 20


class Repository:
    """A memory. Opening one reads two small files; everything else is read, and checked, when it is needed.

    Any number of processes may read, and one at a time write each branch. Nothing needs closing but writers.
    """

    def __init__(self, root: Path, info: MemoryInfo, deny: Iterable[str] = ()) -> None:
        """Use `create` or `open`."""
        self.root = root
        self.info = info
        self.refs = Refs(root)
        reader = ObjectReader(local_store(root, "unused"), stubs=Stubs(root))
        self.deny = frozenset(checked_names(deny))
        access = Access(self.deny, self.refs, reader, info.segment_blocks) if self.deny else None
        self._place = Place(root, info.segment_blocks, self.refs, reader, info.format, access)

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        tokenizer: str = "",
        model: str = "",
        tokenizer_files: Mapping[str, bytes] | None = None,
        created: float | None = None,
        segment_blocks: int = SEGMENT_BLOCKS,
    ) -> Repository:
        """Creates an empty memory in a new or empty folder, with branch `main` at an empty first commit.

        `segment_blocks` is 1,024, or 32 for tests that want many segments. Raises MemoryExists, InvalidInput for
        a folder with other files. A crash leaves something that `create` finishes when it is called again.
        """
        root = Path(path)
        if (root / INFO).exists():
            raise MemoryExists(f"there is a memory at {root} already; open it, or choose another folder")
        ours = {name.split("/")[0] for name in FOLDERS} | {"HEAD", "tokenizer", f".{INFO}.tmp", ".HEAD.tmp"}
        if root.exists() and (not root.is_dir() or {entry.name for entry in root.iterdir()} - ours):
            raise InvalidInput(f"{root} holds other files; choose a new or an empty folder")
        contents = dict(tokenizer_files or {})
        moment = clock.time() if created is None else created
        info = MemoryInfo(
            tokenizer=tokenizer,
            model=model,
            created=moment,
            tokenizer_files={name: digest(data) for name, data in contents.items()},
            segment_blocks=segment_blocks,
        )
        for folder in (*FOLDERS, "tokenizer"):
            files.make_folder(root / folder)
        files.sync_all({(root / folder).parent for folder in FOLDERS}, files.sync_folder)
        for name, data in contents.items():
            files.replace_file(_inside(root / "tokenizer", name), data)
        repository = cls(root, info)
        first = repository._first_commit(moment)
        before = repository.refs.read(BRANCHES, MAIN)
        repository.refs.move(BRANCHES, MAIN, before, first)
        repository.refs.set_head(MAIN)
        # Last: with this file the memory exists, and everything that it needs is there.
        files.replace_file(root / INFO, info.to_bytes())
        files.sync_folder(root.absolute().parent)
        return repository

    @classmethod
    def open(cls, path: Path | str, *, deny: Iterable[str] = ()) -> Repository:
        """Opens a memory. Raises MemoryNotFound, CorruptObject, FormatVersionError. An erasure that a crash interrupted is
        finished first."""
        root = Path(path)
        resume(root)
        return cls(root, read_info(root), deny)

    @property
    def head(self) -> str:
        """The current branch."""
        return self.refs.head

    def checkout(self, branch: str) -> None:
        """Makes a branch the current one; raises UnknownReference."""
        self.refs.branch(branch)
        self.refs.set_head(branch)

    def branches(self) -> list[str]:
        """All branches, sorted."""
        return self.refs.names(BRANCHES)

    def tags(self) -> list[str]:
        """All tags, sorted."""
        return self.refs.names(TAGS)

    def create_branch(self, name: str, at: str | None = None) -> str:
        """Creates a branch at a commit (branch, tag or hash; default: the current branch's) and returns that
        commit. It takes O(1). What the journal of `at` holds is not in a commit yet and not in the new branch."""
        return self._create(BRANCHES, name, at)

    def create_tag(self, name: str, at: str | None = None) -> str:
        """Creates a tag at a commit; see `create_branch`."""
        return self._create(TAGS, name, at)

    def delete_branch(self, name: str) -> None:
        """Removes a branch and what its journal holds; its commits stay. Raises BranchLocked, UnknownReference,
        InvalidInput for the current branch."""
        if name == self.head:
            raise InvalidInput(f"{name} is the current branch; check out another one first")
        with self._hold(name):
            path = self._place.journal(name)
            files.remove(path)
            files.sync_folder(path.parent)
            self.refs.move(BRANCHES, name, self.refs.branch(name), None)

    def delete_tag(self, name: str) -> None:
        """Removes a tag; raises UnknownReference."""
        commit = self.refs.read(TAGS, name)
        if commit is None:
            raise UnknownReference(f"no tag {name!r}{suggestion(name, self.tags())}")
        self.refs.move(TAGS, name, commit, None)

    def resolve(self, reference: str | None = None) -> str:
        """The name of the commit that a branch, tag, hash (its first 4 digits or more, if they are unique) or HEAD, maybe with
        steps back (see `revisions`), stands for; None is the current branch. Raises UnknownReference with suggestions."""
        revision = parse(reference if reference is not None else HEAD[0], self.head)
        return follow(self._named(revision.name), revision, lambda name: load_commit(self._place.reader, name))

    def _named(self, name: str) -> str:
        commit = self.refs.read(BRANCHES, name) or self.refs.read(TAGS, name)
        if commit is not None:
            return commit
        found = self._commits_starting(name)
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownReference(f"{name} could be {', '.join(each[:16] for each in found)}; give more digits")
        known = self.branches() + self.tags()
        raise UnknownReference(f"no branch, tag or commit {name!r}{suggestion(name, known)}")

    def commit(self, reference: str | None = None) -> Commit:
        """The commit that a reference stands for."""
        return shown_commit(load_commit(self._place.reader, self.resolve(reference)), whole=not self.deny)

    def history(self, reference: str | None = None) -> Iterator[tuple[str, Commit]]:
        """Names and commits from a reference back to the first, along first parents."""
        name: str | None = self.resolve(reference)
        while name:
            commit = load_commit(self._place.reader, name)
            yield name, shown_commit(commit, whole=not self.deny)
            name = commit.parents[0] if commit.parents else None

    def snapshot(self, reference: str | None = None) -> Snapshot:
        """What a branch holds now, with what its journal acknowledges, or what a tag or commit held."""
        name = self.head if reference is None or reference in HEAD else reference
        if self.refs.read(BRANCHES, name) is not None:
            return self._view(self._branch_state(name))
        return self._view(self._load(self.resolve(name), None))

    def under_way(self, branch: str | None = None) -> UnderWay | None:
        """The unfinished document of a branch; None where there is none, or for a reader that is denied anything."""
        name = self.head if branch is None or branch in HEAD else branch
        if self.deny or self.refs.read(BRANCHES, name) is None:
            return None
        return under_way(self._branch_state(name), self._place.lock(name))

    def changes(self, before: str | None, after: str) -> list[Change]:
        """What became of the documents between two commits (by name; None: an empty memory), by source. Reads the records
        that differ and nothing else."""
        if self._place.access is not None:
            return shown_changes(self.snapshot(before) if before else None, self.snapshot(after))
        return commit_changes(self._place.reader, self.commit(before) if before else None, self.commit(after))

    def compare(self, left: Snapshot, right: Snapshot) -> list[Change]:
        """The documents that differ between two snapshots, by source; see `changes`."""
        if self._place.access is not None:
            return shown_changes(left, right)
        return snapshot_changes(self._place.reader, left, right)

    def merge_bases(self, left: str, right: str) -> list[str]:
        """Where the histories of two commits (by name) parted; see `ancestry.merge_bases`."""
        return merge_bases(lambda name: load_commit(self._place.reader, name), left, right)

    def read_object(self, name: str) -> bytes:
        """The bytes of an object, checked against its name. Raises AccessDenied for a reader that is denied something; a
        document's original is had from `Snapshot.original`."""
        self.require_whole("reading objects by name")
        return self._place.reader.store.get(name)

    def writer(self, branch: str | None = None, *, layer: LayerSpec | None = None, appending: bool = False) -> BranchWriter:
        """Takes a branch (default: the current one) for writing, with or without gists. Raises BranchLocked,
        UnknownReference, InvalidInput if the layer does not cover what the branch holds.

        A reader that is denied something gets none (AccessDenied) but for `appending` a conversation, which is not one that
        it is denied: what is written goes by what is there, and gists are made of all of it.
        """
        writer = BranchWriter(replace(self._place, appending=appending), branch or self.head, layer)
        if (guard := writer.guard()) and writer.document and guard.hides(writer.document, None):
            writer.close()
            raise AccessDenied(f"the conversation on branch {writer.branch!r} is denied to this reader")
        return writer

    def transaction(self, branch: str | None = None) -> Transaction:
        """Takes a branch for a change that readers see at once or never. Raises BranchLocked, UnknownReference."""
        return Transaction(self._place, branch or self.head)

    def repacker(self, branch: str | None = None) -> Repacker:
        """Takes a branch for leaving out what is dead. Raises BranchLocked, UnknownReference."""
        return Repacker(self._place, branch or self.head)

    def pruner(self) -> Pruner:
        """For moving raw tokens to an archive and back. Raises AccessDenied for a reader that is denied anything."""
        refuse_denied(self._place.access, "pruning or restoring")
        check_writable(self.root, self.info.format)
        return Pruner(self._place)

    def unpruned(self) -> Repository:
        """The same memory with raw tokens and originals that were pruned, which are read in their archives, as far as these are
        at hand. Nothing is brought back by it. Raises AccessDenied for a reader that is denied anything."""
        refuse_denied(self._place.access, "reading archives")
        other = Repository(self.root, self.info)
        other._place = replace(other._place, reader=ArchiveReader(WholeStore(self.root)))
        return other

    def add_layer(self, spec: LayerSpec, branch: str | None = None) -> LayerWriter:
        """Takes a branch for laying a gist layer over the tokens it holds already, or for extending one."""
        return LayerWriter(self._place, branch or self.head, spec)

    def drop_layer(self, fingerprint: str, branch: str | None = None, *, message: str = "", author: str = "") -> str:
        """Commits a branch without one of its gist layers; returns the commit. See `LayerDrop.drop`."""
        with LayerDrop(self._place, branch or self.head) as hold:
            return hold.drop(fingerprint, message=message, author=author)

    def label(
        self, change: Callable[[Snapshot, Labels], Labels], branch: str | None = None, *, message: str = "", author: str = ""
    ) -> str:
        """Commits a branch with other labels, which `change` makes of what it holds and its labels so far; returns the
        commit. See `Labelling`."""
        with Labelling(self._place, branch or self.head) as hold:
            return hold.relabel(change, message=message, author=author)

    def all_labels(self) -> set[str]:
        """The labels that anything on any branch or tag carries, whatever this reader is denied."""
        branches = [self._branch_state(name).labels() for name in self.branches()]
        commits = [load_commit(self._place.reader, self.resolve(name)) for name in self.tags()]
        held = [*branches, *(load_labels(self._place.reader, commit.labels) for commit in commits)]
        marks = (name for each in held for marks in each.documents.values() for name in marks.labels)
        return {*(name for each in held for name in each.ranges), *marks}

    def require_whole(self, what: str) -> None:
        """Raises AccessDenied for a reader that is denied something; `what` reads past what snapshots give out."""
        refuse_denied(self._place.access, what)

    def fsck(self) -> Report:
        """Recomputes every hash and checksum; see `fsck.check`."""
        self.require_whole("fsck")
        return check(self.root)

    def _hold(self, branch: str) -> BranchHold:
        return BranchHold(replace(self._place, appending=True), branch)

    def _view(self, state: BranchState) -> Snapshot:
        guard, access = None, self._place.access
        if access is not None:
            guard = Guard(access.deny, state.labels(), state.visible_blocks, access.elsewhere(state.base.name))
        return Snapshot(self._place.reader, state, self.info.segment_blocks, guard)

    def _load(self, commit: str, spec: LayerSpec | None) -> BranchState:
        base = Base.load(self._place.reader, commit)
        return BranchState.load(self._place.reader, base, self.info.segment_blocks, spec)

    def _branch_state(self, branch: str) -> BranchState:
        """A branch's commit and the journal records on top of it, read as one although they are two files."""
        for attempt in range(_TRIES):
            head = self.refs.branch(branch)
            try:
                frames = journal_frames(self._place.journal(branch), head)
                if frames is not None:
                    state = self._load(head, journal_spec(frames))
                    state.replay(frames)
                    return state
            except CorruptObject:
                # A writer that cuts a torn end may be seen half way; damage will be there again.
                if attempt >= 2:
                    raise
        raise CorruptObject(f"journal {self._place.journal(branch)} does not continue commit {head}; run `megacontext fsck`")

    def _create(self, kind: str, name: str, at: str | None) -> str:
        check_name(name)
        # The commit may be one that no branch names, and about to be collected.
        with local_store(self.root, "unused").unswept():
            commit = self.resolve(at)
            if not self._place.reader.store.has(commit):
                raise MissingObject(f"commit {commit} is not there any more")
            load_commit(self._place.reader, commit)
            try:
                self.refs.move(kind, name, None, commit)
            except RefConflict as error:
                raise InvalidInput(f"{name!r} exists already; choose another name") from error
        return commit

    def _commits_starting(self, prefix: str) -> list[str]:
        """Names of the commits that start with at least 4 hexadecimal digits; reads one folder of objects."""
        if not 4 <= len(prefix) <= 64 or set(prefix) - set("0123456789abcdef"):
            return []
        folder = self.root / "objects" / prefix[:2]
        found = []
        for path in sorted(folder.glob(f"{prefix}*")):
            try:
                load_commit(self._place.reader, path.name)
            except CorruptObject as error:
                if path.name == prefix and "should hold" not in str(error):
                    raise
                continue
            except MissingObject:
                continue
            found.append(path.name)
        return found

    def _first_commit(self, moment: float) -> str:
        store = local_store(self.root, "create")
        first = Commit(
            tokens=store.put(TokenTree().to_bytes()),
            documents=store.put(DocumentTree().to_bytes()),
            time=moment,
            message="An empty memory",
        )
        name = store.put(first.to_bytes())
        store.sync()
        return name


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if path.parent != folder or name in ("", ".", ".."):
        raise InvalidInput(f"{name!r} is not the plain name of a file")
    return path
