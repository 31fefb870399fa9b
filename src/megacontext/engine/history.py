"""The history of a memory: what each commit changed, what differs between two states, branches and tags.

Nothing here needs a model.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext.core import BLOCK
from megacontext.errors import UnknownReference
from megacontext.storage import Change, Commit, DocumentRecord, Repository, Snapshot
from megacontext.storage.compare import last_records, live

NO_NEWLINE = "\\ No newline at end of file\n"


@dataclass(frozen=True, kw_only=True)
class DocumentDifference:
    """A source that differs between two states: its document in each (None: not there), and how many of its blocks are only
    in the one that was before or only in the one that is after."""

    source: str
    before: DocumentRecord | None
    after: DocumentRecord | None
    blocks_removed: int
    blocks_added: int

    def to_json(self) -> dict[str, Any]:
        """The same as plain data; versions are None where there is no document."""
        return {
            "source": self.source,
            "before": self.before and self.before.version,
            "after": self.after and self.after.version,
            "blocks_removed": self.blocks_removed,
            "blocks_added": self.blocks_added,
        }


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What differs between two states, by source."""

    documents: tuple[DocumentDifference, ...]

    @property
    def blocks_added(self) -> int:
        """Blocks of documents that are only in the second state."""
        return sum(each.blocks_added for each in self.documents)

    @property
    def blocks_removed(self) -> int:
        """Blocks of documents that are only in the first state."""
        return sum(each.blocks_removed for each in self.documents)

    @property
    def added(self) -> tuple[str, ...]:
        """Sources that are only in the second state."""
        return tuple(each.source for each in self.documents if each.before is None)

    @property
    def removed(self) -> tuple[str, ...]:
        """Sources that are only in the first state."""
        return tuple(each.source for each in self.documents if each.after is None)

    @property
    def changed(self) -> tuple[str, ...]:
        """Sources that are in both with another text."""
        return tuple(each.source for each in self.documents if each.before is not None and each.after is not None)


class History:
    """What a memory is beyond what it holds now."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    def snapshot(self, reference: str | None = None) -> Snapshot:
        """An immutable view of a branch (default: the current one), tag or commit."""
        return self.repository.snapshot(reference)

    def log(self, reference: str | None = None) -> Iterator[tuple[str, Commit]]:
        """Names and commits, newest first, along first parents; each is read when it is asked for."""
        return self.repository.history(reference)

    def changes(self, commit: str | None = None) -> list[Change]:
        """What a commit (default: the current branch's) did to documents, by source: against its first parent, so a merge
        shows what it brought. Reads the records that differ and nothing else."""
        name = self.repository.resolve(commit)
        parents = self.repository.commit(name).parents
        return self.repository.changes(parents[0] if parents else None, name)

    def diff(self, a: str | None = None, b: str | None = None) -> Difference:
        """What differs between two branches, tags or commits (default of ``b``: the current branch; of ``a``: the commit
        before ``b``'s). Top-down: what is equal is not read, whatever its size."""
        left, right = self.sides(a, b)
        return Difference(documents=tuple(_difference(each, left, right) for each in self.repository.compare(left, right)))

    def branch(self, name: str, at: str | None = None) -> str:
        """Create a branch; returns the commit it starts from."""
        return self.repository.create_branch(name, at)

    def tag(self, name: str, at: str | None = None) -> str:
        """Create a tag at a branch, tag or commit (default: the current branch's); returns that commit."""
        return self.repository.create_tag(name, at)

    def checkout(self, branch: str) -> str:
        """Make a branch the current one; returns its commit. Raises UnknownReference, also for tags and commits."""
        repository = self.repository
        if branch not in repository.branches():
            try:
                repository.resolve(branch)
            except UnknownReference:
                repository.refs.branch(branch)  # says what there is
            kind = "tag" if branch in repository.tags() else "commit"
            raise UnknownReference(
                f"{branch} is a {kind}, and only branches grow: read it with --at {branch}, or start a branch there with "
                f"`megacontext checkout -b NAME {branch}`"
            )
        repository.checkout(branch)
        return repository.refs.branch(branch)

    def sides(self, a: str | None = None, b: str | None = None) -> tuple[Snapshot, Snapshot]:
        """The two states that ``diff`` compares."""
        right = self.snapshot(b)
        if a is None:
            a = next(iter(right.commit.parents), right.commit_name)
        return self.snapshot(a), right


def live_record(snapshot: Snapshot, source: str) -> DocumentRecord | None:
    """The document of a source that is there now, looked for from the newest backwards."""
    return live(last_records(snapshot, [source]).get(source))


def text_difference(source: str, before: str | None, after: str | None, names: tuple[str, str]) -> str:
    """Two texts of a document as a unified diff; None where it is not there. ``names`` say of which states they are."""
    old, new = (
        f"{source}\t{name}" if text is not None else "/dev/null" for text, name in zip((before, after), names, strict=True)
    )
    lines = difflib.unified_diff(_lines(before), _lines(after), old, new)
    return "".join(line if line.endswith("\n") else f"{line}\n{NO_NEWLINE}" for line in lines)


def _lines(text: str | None) -> list[str]:
    # Not splitlines: a form feed or a lone carriage return ends no line here.
    parts = (text or "").split("\n")
    return [f"{part}\n" for part in parts[:-1]] + parts[-1:] * bool(parts[-1])


def _difference(change: Change, left: Snapshot, right: Snapshot) -> DocumentDifference:
    before, after = change.live_before, change.live_after
    old, new = _block_counts(left, before), _block_counts(right, after)
    common = (old & new).total()
    return DocumentDifference(
        source=change.source,
        before=before,
        after=after,
        blocks_removed=old.total() - common,
        blocks_added=new.total() - common,
    )


def _block_counts(snapshot: Snapshot, record: DocumentRecord | None) -> Counter[bytes]:
    """How often each block content occurs in a document; an unfinished block counts as one."""
    if record is None:
        return Counter()
    blocks = snapshot.timeline().present(*record.span)
    real = np.arange(BLOCK) < snapshot.fill_at(blocks)[:, None]
    rows: NDArray[np.int64] = np.where(real, snapshot.tokens_at(blocks).astype(np.int64), -1)
    if record.open and len(snapshot.open_ids):
        last = np.full((1, BLOCK), -1, np.int64)
        last[0, : len(snapshot.open_ids)] = snapshot.open_ids
        rows = np.concatenate([rows, last])
    return Counter(map(bytes, rows))
