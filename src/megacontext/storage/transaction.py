"""All or nothing: any number of documents added, replaced and removed on a branch in one step.

They are written aside, on top of the branch's commit, by an ordinary writer whose branch nobody else can see. Only when
all of it is in a commit does the branch move there. A crash before that leaves the branch as it was, and what was
written aside is removed by the next writer of the branch.
"""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from megacontext.errors import StorageError
from megacontext.storage import files
from megacontext.storage.commit import load_commit
from megacontext.storage.gists import LayerSpec
from megacontext.storage.hold import BranchHold
from megacontext.storage.journal import Record, RecordKind
from megacontext.storage.place import Place
from megacontext.storage.refs import BRANCHES, Refs, quoted
from megacontext.storage.state import Base
from megacontext.storage.writer import BranchWriter


class Transaction(BranchHold):
    """A branch that nobody else can write, and that moves once; get it from `Repository.transaction`, use it as a context
    manager. Without `apply` or `move` nothing happens.

    What the branch's journal holds is committed first. A document that was left unfinished is dropped with the move.
    """

    def __init__(self, place: Place, branch: str) -> None:
        super().__init__(place, branch)
        try:
            self.settle()
        except BaseException:
            self.close()
            raise

    @property
    def commit_name(self) -> str:
        """The commit that the branch is at."""
        return self._state.base.name

    def settle(self) -> str:
        """Commits what the journal holds; returns the name of the branch's commit."""
        return self.commit("Settled before a change of the whole branch") if self._journal.records else self.commit_name

    def writer(self, layer: LayerSpec | None) -> BranchWriter:
        """A writer on top of the branch's commit. What it commits is seen by nobody until `apply`. Raises InvalidInput if
        the layer does not cover what the branch holds."""
        return BranchWriter(_aside(self._place, self.commit_name), self.branch, layer)

    def apply(
        self,
        commit: str,
        *,
        message: str,
        author: str = "",
        time: float | None = None,
        parents: Sequence[str] = (),
    ) -> str:
        """Makes the content of `commit`, which the writer made, the branch's, as one new commit; returns its name. `parents`
        are commits that are merged by this one, beside the branch's own."""
        content = load_commit(self._place.reader, commit)
        one = replace(
            content,
            parents=(self.commit_name, *parents),
            author=author,
            time=clock.time() if time is None else time,
            message=message,
        )
        name = self._store.put(one.to_bytes())
        self._store.sync()
        self.move(name)
        return name

    def move(self, commit: str) -> None:
        """Moves the branch to a commit, durably: `apply`'s, or any that has the branch's in its past."""
        place, before = self._place, self.commit_name
        state = self._load(Base.load(place.reader, commit), None)
        if self._state.active is not None and not self._state.active.begun.open:
            # Its gists belong behind the old commit.
            self._journal.append(Record(RecordKind.ABORT, {}, {}))
        # The mark first: the journal then leads to either commit, whichever the branch is at after a crash.
        self._journal.append(Record(RecordKind.COMMIT, {"commit": commit}, {}))
        self._journal.sync()
        place.refs.move(BRANCHES, self.branch, before, commit)
        self._state = state
        # The move stands even if the journal cannot be cut: its COMMIT record says what counts.
        with suppress(StorageError):
            self._journal.restart(commit, ())


@dataclass(frozen=True)
class _Aside(Place):
    """The folder of a memory for one writer on a branch that it alone knows of; its files lie in the staging folder."""

    def journal(self, branch: str) -> Path:
        folder = self.root / "staging" / quoted(branch)
        files.make_folder(folder)
        return folder / "aside.wal"

    def lock(self, branch: str) -> Path:
        # No branch's own: a quoted name holds no "+".
        return self.root / "locks" / f"{quoted(branch)}+aside"


class _OneRef(Refs):
    """A branch that is not on the disk."""

    def __init__(self, root: Path, commit: str) -> None:
        super().__init__(root)
        self._commit = commit

    def branch(self, name: str) -> str:
        return self._commit

    def move(self, kind: str, name: str, before: str | None, after: str | None) -> None:
        self._commit = str(after)


def _aside(place: Place, commit: str) -> Place:
    return _Aside(**{**vars(place), "refs": _OneRef(place.root, commit)})
