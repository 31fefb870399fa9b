"""Merging branches and reverting commits: what is to be done is planned, then done in one step or not at all.

Light on purpose: what takes no copy of a document needs no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from megacontext.engine.merge_plan import Choice, Edit, Plan, plan_merge, plan_revert, put_labels
from megacontext.errors import BranchLocked, InvalidInput
from megacontext.storage import DocumentRecord, Repository, Snapshot, Transaction
from megacontext.storage.erased import load_erased

if TYPE_CHECKING:
    from megacontext.engine.bundle import Bundle


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What a merge or a revert did: the branch's commit ``before`` it and now, by source what was ``added``, ``changed`` and
    ``removed``, the ``conflicts`` that a choice decided, what was ``refused`` since it was erased from this memory, and how
    many ``blocks`` were written. A ``fast_forward`` only moved the branch. ``ahead``: the other branch was being written, and
    what it had not committed is not in."""

    before: str
    commit: str
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    blocks: int = 0
    fast_forward: bool = False
    ahead: bool = False

    @property
    def nothing(self) -> bool:
        """Whether there was nothing to do."""
        return self.commit == self.before

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


class Merger:
    """Merges into branches of one memory and reverts on them. `bundle` loads the models, if a document has to be copied."""

    def __init__(self, repository: Repository, bundle: Callable[[], Bundle]) -> None:
        self._repository, self._bundle = repository, bundle

    @cached_property
    def _whole(self) -> Repository:
        return self._repository.unpruned() if not self._repository.deny else self._repository

    def merge(
        self,
        reference: str,
        *,
        branch: str | None = None,
        choice: Choice | None = None,
        message: str = "",
        author: str = "",
    ) -> Merged:
        """Brings what a branch, tag or commit has changed since the two parted into a branch (default: the current one).

        Raises MergeConflict, with nothing written, for documents that both changed, unless there is a ``choice``.
        """
        ahead = self._settled(reference, branch or self._repository.head)
        with self._repository.transaction(branch) as transaction:
            before, theirs_name = transaction.commit_name, self._repository.resolve(reference)
            bases = self._repository.merge_bases(before, theirs_name)
            if theirs_name in bases:
                return Merged(before=before, commit=before, ahead=ahead)
            # Conversations are compared by their tokens, and copies sealed with them: pruned ones are read in their archive.
            ours, theirs = self._whole.snapshot(before), self._whole.snapshot(theirs_name)
            _refuse_open(ours, transaction.branch)
            erased = load_erased(self._repository.root)
            if before in bases and _may_stand_for(theirs, ours):
                plan = Plan(edits=tuple(_as_edits(self._repository, ours, theirs)))
                if not plan.without_erased(erased).refused:
                    transaction.move(theirs_name)
                    return _result(
                        plan, before, theirs_name, max(theirs.blocks - ours.blocks, 0), fast_forward=True, ahead=ahead
                    )
            plan = plan_merge(self._whole, ours, theirs, bases, choice, reference).without_erased(erased)
            text = message or f"Merge {reference}"
            return self._carry_out(transaction, plan, theirs, text, author, parents=(theirs_name,), ahead=ahead)

    def revert(self, reference: str, *, branch: str | None = None, message: str = "", author: str = "") -> Merged:
        """Undoes what a commit changed against its first parent, as a new commit of a branch (default: the current one).

        Raises MergeConflict, with nothing written, for documents that were changed again since.
        """
        repository = self._repository
        name = repository.resolve(reference)
        commit = repository.commit(name)
        with repository.transaction(branch) as transaction:
            after = self._whole.snapshot(name)
            past = self._whole.snapshot(commit.parents[0]) if commit.parents else None
            now = self._whole.snapshot(transaction.commit_name)
            plan = plan_revert(self._whole, now, past, after).without_erased(load_erased(repository.root))
            if not plan.edits:
                return _result(plan, transaction.commit_name, transaction.commit_name, 0)
            _refuse_open(now, transaction.branch)
            about = " ".join(commit.message.split())
            text = message or f"Revert {name[:12]}" + (f": {about}" if about else "")
            return self._carry_out(transaction, plan, past or after, text, author)

    def _settled(self, reference: str, branch: str) -> bool:
        """Commits what the other branch's journal holds; whether that could not be, since it is being written."""
        repository = self._repository
        if reference == branch or reference not in repository.branches():
            return False
        now = repository.snapshot(reference)
        there = now.commit
        if (now.blocks, len(now.open_ids), len(now.documents)) == (there.blocks, there.open_tokens, there.document_count):
            return False
        with suppress(BranchLocked), repository.transaction(reference):
            return False
        return True

    def _carry_out(
        self,
        transaction: Transaction,
        plan: Plan,
        other: Snapshot,
        message: str,
        author: str,
        *,
        parents: tuple[str, ...] = (),
        ahead: bool = False,
    ) -> Merged:
        before = made = transaction.commit_name
        blocks = 0
        if plan.edits:
            from megacontext.engine.copying import carry_out

            pruned = self._repository.snapshot(other.commit_name).timeline().pruned
            made, blocks = carry_out(transaction, self._bundle(), other, plan, pruned)
        elif plan.labels:
            with transaction.writer(None) as writer:
                put_labels(writer, plan.labels)
                made = writer.commit()
        commit = transaction.apply(made, message=message, author=author, parents=parents)
        return _result(plan, before, commit, blocks, ahead=ahead)


def _may_stand_for(theirs: Snapshot, ours: Snapshot) -> bool:
    """Whether a branch may simply move to a later state: it has all gists that ours has, and no conversation that would go on
    growing there."""
    whole = {name for name, blocks in ours.layers.items() if blocks == ours.blocks} - ours.stale_layers
    kept = {name for name, blocks in theirs.layers.items() if blocks == theirs.blocks} - theirs.stale_layers
    return not _open(theirs) and whole <= kept


def _open(snapshot: Snapshot) -> DocumentRecord | None:
    """The conversation that still grows at the end of a state."""
    last = snapshot.documents[len(snapshot.documents) - 1] if len(snapshot.documents) else None
    return last if last is not None and last.open else None


def _refuse_open(snapshot: Snapshot, branch: str) -> None:
    if (last := _open(snapshot)) is not None:
        raise InvalidInput(
            f"{branch} ends with the conversation {last.source}, which still grows, so nothing can follow it: choose a branch "
            "without one (a session is merged into another branch, not the other way round)"
        )


def _as_edits(repository: Repository, ours: Snapshot, theirs: Snapshot) -> Iterator[Edit]:
    for change in repository.compare(ours, theirs):
        yield Edit(source=change.source, take=change.live_after, over=change.before)


def _result(plan: Plan, before: str, commit: str, blocks: int, *, fast_forward: bool = False, ahead: bool = False) -> Merged:
    edits = plan.edits
    return Merged(
        before=before,
        commit=commit,
        added=tuple(each.source for each in edits if each.take and not each.replaced),
        changed=tuple(each.source for each in edits if each.take and each.replaced),
        removed=tuple(each.source for each in edits if not each.take),
        conflicts=plan.conflicts,
        refused=plan.refused,
        blocks=blocks,
        fast_forward=fast_forward,
        ahead=ahead,
    )
