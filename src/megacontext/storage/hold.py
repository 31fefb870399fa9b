"""Holding a branch: its lock, its recovered state, and the one way in which a commit is made durable."""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from megacontext.core.ranges import BlockRange
from megacontext.errors import CorruptObject, DetailPruned, MissingObject, StorageError
from megacontext.storage import files
from megacontext.storage.access import refuse_denied
from megacontext.storage.commit import Commit
from megacontext.storage.documents import PAGE_RECORDS
from megacontext.storage.gists import LayerSpec
from megacontext.storage.guard import Guard
from megacontext.storage.journal import Journal, Record, RecordKind, read_journal, unfinished
from megacontext.storage.objects import LocalObjectStore
from megacontext.storage.place import Place
from megacontext.storage.raw import pruned_blocks
from megacontext.storage.refs import BRANCHES
from megacontext.storage.seal import Sealer
from megacontext.storage.snapshot import Snapshot
from megacontext.storage.state import Base, BranchState, journal_spec, layer_tree

PATIENCE = 0.5
"""Seconds after which a branch that is taken counts as being written."""


class BranchHold:
    """A branch that this process alone may change. One thread at a time, except for `sync`.

    Raises BranchLocked if somebody else holds it, UnknownReference if there is no such branch, AccessDenied for a reader
    that is denied something, unless it only appends.
    """

    def __init__(self, place: Place, branch: str) -> None:
        if not place.appending:
            refuse_denied(place.access, f"changing branch {branch!r}")
        self.branch = branch
        self._place = place
        place.refs.branch(branch)
        self._lock = files.FileLock(place.lock(branch))
        # A collector of garbage holds a branch for a moment, to see that nobody stages anything there.
        self._lock.acquire(wait=False, what=f"branch {branch!r}", patience=PATIENCE)
        try:
            self._store: LocalObjectStore = place.store(branch)
            self._store.clean()
            self._journal, self._state = self._recover()
            self._elsewhere = place.access.elsewhere(self._state.base.name) if place.access else ()
        except BaseException:
            self._lock.release()
            raise

    def sync(self) -> None:
        """Acknowledges: returns once everything written so far survives a crash."""
        self._journal.sync()

    def snapshot(self) -> Snapshot:
        """What a reader sees now, unsynced writes included."""
        return Snapshot(self._place.reader, self._state, self._place.segment_blocks, self.guard())

    def whole_snapshot(self) -> Snapshot:
        """The same with the raw tokens of pruned blocks, which are read in their archive: MissingObject where that is not at
        hand."""
        return Snapshot(self._place.whole(), self._state, self._place.segment_blocks, self.guard())

    def pruned(self) -> tuple[BlockRange, ...]:
        """The blocks whose raw tokens are archived, sorted."""
        segments, tail = self._state.base.tokens.strand.segments, self._state.visible_tail()
        return pruned_blocks(self._place.reader, segments, self._place.segment_blocks, tail.pruned)

    def guard(self) -> Guard | None:
        """What may not be seen of the branch: what other branches and tags deny is that of when this one was taken."""
        access, state = self._place.access, self._state
        return Guard(access.deny, state.labels(), state.visible_blocks, self._elsewhere) if access else None

    def commit(self, message: str = "", author: str = "", time: float | None = None, *, parents: Sequence[str] = ()) -> str:
        """Settles everything that is finished, and the open document so far, in a commit; returns its name.
        Without anything new that is the branch's last commit. `time` is in seconds since 1970; `parents` are commits that
        are merged by this one.

        On StorageFull the branch is as before, with all that was acknowledged.
        """
        self.sync()
        base, state = self._state.base, self._state
        sealer = Sealer(self._store, self._place.segment_blocks)
        try:
            tail = state.visible_tail()
            tokens = sealer.tokens(base.tokens, tail)
            documents = sealer.documents(base.documents, state.visible_documents(), tail)
            layers = dict(base.commit.layers)
            if state.spec and state.tail.gists and tokens.blocks:
                layer = layer_tree(self._place.reader, base, state.spec)
                sealed = tokens.strand.segments
                layer = sealer.gists(layer, state.tail.gists, tokens.blocks, sealed, state.dead, state.overlay)
                layers[state.spec.fingerprint] = self._store.put(layer.to_bytes())
            commit = Commit(
                tokens=self._store.put(tokens.to_bytes()),
                documents=self._store.put(documents.to_bytes()),
                layers=layers,
                blocks=tokens.blocks,
                open_tokens=tokens.open_tokens,
                document_count=documents.count,
                dead=sealer.dead(state.dead),
                labels=sealer.labels(state.labels(), base.labels, base.commit.labels),
                parents=(base.name, *parents),
                author=author,
                time=clock.time() if time is None else time,
                message=message,
            )
            return self._publish(commit)
        except BaseException:
            self._store.discard()
            raise

    def close(self) -> None:
        """Acknowledges what was written and lets the branch go; an open document stays open."""
        try:
            if not self._journal.closed:
                self.sync()
        finally:
            self._journal.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # An error on the way out must not hide the one that leads here.
        with suppress(*((StorageError,) if error else ())):
            self.close()

    def _recover(self) -> tuple[Journal, BranchState]:
        """Brings the branch back to where its last writer was, whatever ended it."""
        place = self._place
        head, path = place.refs.branch(self.branch), place.journal(self.branch)
        content = read_journal(path)
        frames = content.live(head) if content else []
        if frames is None:
            raise CorruptObject(f"journal {path} does not continue commit {head}; run `megacontext fsck`")
        base = Base.load(place.reader, head)
        state = self._load(base, journal_spec(frames))
        state.replay(frames)
        journal = Journal(path, head, content)
        if content and content.base != head:
            # The crash came between the move of the branch and the cut of the journal.
            journal.restart(head, frames)
        return journal, state

    def _reload(self, spec: LayerSpec | None) -> None:
        """Starts again from the branch's commit, with an empty journal and another layer."""
        base = self._state.base
        state = self._load(base, spec)
        if self._journal.records:
            self._journal.restart(base.name, ())
        self._state = state

    def _load(self, base: Base, spec: LayerSpec | None) -> BranchState:
        """The state at a commit, with the raw tokens of its tail, pruned ones too: what follows is sealed with them. Raises
        DetailPruned where their archive is not at hand."""
        place = self._place
        state = BranchState.load(place.reader, base, place.segment_blocks, spec)
        if not state.tail.pruned:
            return state
        try:
            return BranchState.load(place.whole(), base, place.segment_blocks, spec)
        except MissingObject as error:
            raise DetailPruned(f"nothing can follow the end of branch {self.branch!r} now: {error}") from error

    def _publish(self, commit: Commit) -> str:
        """Makes a staged commit the branch's: objects, then the mark in the journal, then the ref, then the cut.
        A crash between any two of them leaves the state before or after, whole."""
        base = self._state.base
        if commit.content == base.commit.content and len(commit.parents) == 1:
            self._store.discard()
            return base.name
        name = self._store.put(commit.to_bytes())
        self._store.sync()
        self._journal.append(Record(RecordKind.COMMIT, {"commit": name}, {}))
        self._journal.sync()
        self._place.refs.move(BRANCHES, self.branch, base.name, name)
        self._settle(Base.load(self._place.reader, name))
        return name

    def _settle(self, base: Base) -> None:
        """Continues on a new commit; what is unfinished is carried over."""
        old = self._state
        sealed = base.documents.records.segments.count - old.base.documents.records.segments.count
        tail = old.tail.after(base.tokens.strand.segments.count * self._place.segment_blocks, old.overlay)
        state = BranchState(base, tail, old.records[sealed * PAGE_RECORDS :], old.spec, old.dead)
        state.active = old.active
        self._state = state
        frames = []
        if old.active and not old.active.begun.open:
            frames = unfinished(self._journal.content().frames)
        # The commit stands even if the journal cannot be cut: its COMMIT record says what counts.
        with suppress(StorageError):
            self._journal.restart(base.name, frames)
