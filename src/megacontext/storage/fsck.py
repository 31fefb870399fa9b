"""fsck: recomputes every hash and checksum of a memory and checks that everything fits together.

Nothing is changed. It may run beside a writer, but what is written meanwhile may then look unfinished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from megacontext.errors import CorruptObject, MegaContextError
from megacontext.storage import audit
from megacontext.storage.erased import FILE, load_erased
from megacontext.storage.erasure.intent import load_intent
from megacontext.storage.info import MemoryInfo, damaged_files, read_info
from megacontext.storage.journal import Frame, JournalContent, originals, read_journal
from megacontext.storage.objects import LocalObjectStore, ObjectReader, ObjectStore
from megacontext.storage.place import ERASING, INFO, local_store
from megacontext.storage.pruning import damage
from megacontext.storage.refs import BRANCHES, TAGS, Refs, quoted
from megacontext.storage.snapshot import Snapshot
from megacontext.storage.state import Base, BranchState, journal_spec
from megacontext.storage.stubs import Stubs
from megacontext.storage.walk import Finding, Walk


@dataclass(frozen=True, kw_only=True)
class Report:
    """What fsck saw: how many `objects` of how many `bytes`, of which `unreachable` are not used by any branch or
    tag; `findings`, each a damage; `notes`, which are none (such as a torn write that was never acknowledged)."""

    objects: int
    bytes: int
    unreachable: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing is damaged."""
        return not self.findings


def check(root: Path) -> Report:
    """Checks the memory at `root`. Raises MemoryNotFound and FormatVersionError; all else is a finding."""
    return _Check(root).run()


def check_commits(
    store: ObjectStore, segment_blocks: int, commits: Mapping[str, str], stubs: Stubs
) -> tuple[list[Finding], set[str]]:
    """The same checks for commits and all before them, by what each is called: findings, and all objects that they need."""
    reader = ObjectReader(store, keep=512, stubs=stubs)
    walk = Walk(reader, segment_blocks)
    for commit in commits.values():
        walk.history(commit)
    findings = list(walk.findings.values())
    if not findings:
        for called, commit in commits.items():
            findings += _fitting(reader, segment_blocks, called, commit, ())
    return findings, walk.reached


def _fitting(reader: ObjectReader, segment_blocks: int, called: str, commit: str, frames: Sequence[Frame]) -> Iterator[Finding]:
    """Do the documents of a state tile its blocks, and are those dead that were replaced?"""
    state = BranchState.load(reader, Base.load(reader, commit), segment_blocks, journal_spec(frames))
    state.replay(frames)
    snapshot = Snapshot(reader, state, segment_blocks)
    spans: list[tuple[int, int]] = []
    end = 0
    for ordinal, record in enumerate(snapshot.documents):
        start, end = end, record.start_block + record.blocks
        spans.append((start, end))
        # Before the arrays are made: they are as large as the record says.
        right = (record.ordinal, record.start_block) == (ordinal, start) and start <= end <= snapshot.blocks
        if right:
            blocks = np.arange(start, end)
            fill = snapshot.fill_at(blocks)
            if not fill.all() and state.dead.within(start, end) != [(0, end - start)]:
                yield Finding(f"document {ordinal} of {called}", "document", "its blocks are blank, but not dead")
            tokens = int(fill.sum(dtype=np.int64)) + (len(snapshot.open_ids) if record.open else 0)
            right = record.tokens == tokens and not (snapshot.documents_at(blocks) != ordinal).any()
        if not right:
            yield Finding(f"document {ordinal} of {called}", "document", f"{record.source} does not match its blocks")
            return
        if record.replaces >= 0:
            low, high = spans[record.replaces] if record.replaces < ordinal else (0, -1)
            if low > high or (low < high and state.dead.within(low, high) != [(0, high - low)]):
                meaning = f"{record.source} replaces what is still there, or never was"
                yield Finding(f"document {ordinal} of {called}", "document", meaning)
    if end != snapshot.blocks:
        yield Finding(called, "branch", f"documents cover {end} of {snapshot.blocks} blocks")


class _HashedStore(LocalObjectStore):
    """The objects as hashed once: known damage raises again, the rest is not hashed a second time."""

    def __init__(self, root: Path, damage: dict[str, str], whole: set[str]) -> None:
        super().__init__(root / "objects", root / "staging" / "unused")
        self._damage = damage
        self._whole = whole

    def get(self, name: str) -> bytes:
        if name in self._whole:
            return self._path(name).read_bytes()
        if name in self._damage:
            raise CorruptObject(self._damage[name])
        raise self.absent(name)

    def view(self, name: str) -> memoryview:
        return memoryview(self.get(name))


class _Check:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._refs = Refs(root)
        self._findings: list[Finding] = []
        self._notes: list[str] = []
        self._damage: dict[str, str] = {}
        self._whole: set[str] = set()
        self._bytes = 0

    def run(self) -> Report:
        info = self._info()
        self._hash_objects()
        stubs = Stubs(self._root)
        reader = ObjectReader(_HashedStore(self._root, self._damage, self._whole), keep=512, stubs=stubs)
        walk = Walk(reader, info.segment_blocks if info else 0)
        branches, tags = dict(self._read_refs(BRANCHES)), dict(self._read_refs(TAGS))
        self._head()
        if info:
            for commit in (*branches.values(), *tags.values()):
                walk.history(commit)
            for branch, commit in branches.items():
                self._branch(branch, commit, walk, reader, info)
            self._journals(branches)
        else:
            self._notes.append(f"only hashes were checked: without {INFO} it is not known how segments are cut")
        self._acts()
        for name, why in damage(self._root):
            self._wrong(name, "archive", f"{why}; lost: raw tokens that were pruned")
        used = walk.findings
        for name, reason in sorted(self._damage.items()):
            if name not in used:
                walk.wrong(name, "object", f"{reason}; nothing that is whole refers to it")
        leftovers = [path for path in (self._root / "staging").glob("*/*") if path.is_file()]
        if leftovers:
            self._notes.append(f"{len(leftovers)} files of an interrupted commit in staging/; the next writer removes them")
        present = self._whole | set(self._damage)
        return Report(
            objects=len(present),
            bytes=self._bytes,
            unreachable=len(present - walk.reached),
            findings=(*self._findings, *used.values()),
            notes=tuple(self._notes),
        )

    def _wrong(self, name: str, kind: str, meaning: object) -> None:
        self._findings.append(Finding(name, kind, str(meaning)))

    def _info(self) -> MemoryInfo | None:
        try:
            info = read_info(self._root)
        except CorruptObject as error:
            self._wrong(INFO, "info", error)
            return None
        for name, what in damaged_files(self._root, info).items():
            self._wrong(f"tokenizer/{name}", "tokenizer", f"{what}; text cannot be read back without it")
        return info

    def _hash_objects(self) -> None:
        store = local_store(self._root, "unused")
        for name in store.names():
            try:
                self._bytes += len(store.get(name))
                self._whole.add(name)
            except CorruptObject as error:
                self._damage[name] = str(error)
        for path in (self._root / "objects").glob("*/*"):
            if path.name not in self._whole and path.name not in self._damage:
                self._notes.append(f"{path} is no object")

    def _read_refs(self, kind: str) -> Iterator[tuple[str, str]]:
        for name in self._refs.names(kind):
            try:
                commit = self._refs.read(kind, name)
            except CorruptObject as error:
                self._wrong(f"refs/{kind}/{name}", "ref", error)
                continue
            if commit is not None:
                yield name, commit

    def _head(self) -> None:
        try:
            if self._refs.head not in self._refs.names(BRANCHES):
                self._wrong("HEAD", "ref", f"the current branch {self._refs.head} is not there")
        except CorruptObject as error:
            self._wrong("HEAD", "ref", error)

    def _branch(self, branch: str, commit: str, walk: Walk, reader: ObjectReader, info: MemoryInfo) -> None:
        """The branch as a reader sees it, journal included; its documents must tile its blocks."""
        path = self._journal(branch)
        try:
            content = read_journal(path)
        except CorruptObject as error:
            self._wrong(f"journal/{path.name}", "journal", f"{error}; lost: what {branch} holds after its last commit")
            return
        if content and content.torn:
            self._notes.append(f"journal of {branch}: {content.torn} bytes of a write that was never acknowledged")
        for name in originals(content.live(commit) or ()) if content else ():
            walk.original(name, f"a document in the journal of {branch}")
        if walk.findings:
            return  # the damage that is known already would show again
        try:
            self._contents(branch, commit, content, reader, info)
        except (MegaContextError, ValueError, KeyError, TypeError, IndexError) as error:
            self._wrong(f"refs/heads/{branch}", "branch", f"its content does not fit together: {error}")

    def _contents(
        self, branch: str, commit: str, content: JournalContent | None, reader: ObjectReader, info: MemoryInfo
    ) -> None:
        frames = content.live(commit) if content else []
        if frames is None:
            self._wrong(f"journal/{self._journal(branch).name}", "journal", f"it does not continue commit {commit}")
            return
        self._findings += _fitting(reader, info.segment_blocks, f"refs/heads/{branch}", commit, frames)

    def _acts(self) -> None:
        """The audit log, and what came of erasures."""
        chain = audit.read(self._root)
        if chain.wrong:
            self._wrong(f"{audit.FOLDER}/{audit.LOG}", "audit log", f"{chain.wrong}: lines were changed or taken out")
        if chain.torn:
            self._notes.append(f"audit log: {chain.torn} bytes of a line that was never finished")
        try:
            load_erased(self._root)
        except CorruptObject as error:
            self._wrong(FILE, "list", f"{error}; lost: what may not come in again")
        try:
            begun = load_intent(self._root) is not None
        except CorruptObject as error:
            begun = False
            self._wrong(ERASING, "erasure", error)
        if begun:
            self._notes.append("an erasure is not finished; megacontext erase --finish does that")

    def _journals(self, branches: dict[str, str]) -> None:
        """Journals whose branch is gone or unreadable: their content hangs in the air."""
        for path in sorted((self._root / "journal").glob("*.wal")):
            branch = unquote(path.name.removesuffix(".wal"))
            if branch not in branches and not path.name.startswith("."):
                try:
                    read_journal(path)
                except CorruptObject as error:
                    self._wrong(f"journal/{path.name}", "journal", error)
                self._wrong(f"journal/{path.name}", "journal", f"there is no readable branch {branch}")

    def _journal(self, branch: str) -> Path:
        return self._root / "journal" / f"{quoted(branch)}.wal"
