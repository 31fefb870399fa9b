"""What a merge or a revert has to do, document by document, before anything is written.

A source is what its last record says: a text, or nothing. Both sides and the state where they parted are compared by that,
so what one side alone changed is taken, what both changed alike is left, and what both changed otherwise is a conflict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from megacontext.errors import MergeConflict
from megacontext.storage import BranchWriter, Change, DocumentRecord, Repository, Snapshot
from megacontext.storage.compare import document_tokens, last_records
from megacontext.storage.erased import ErasedList
from megacontext.storage.hashing import digest

Choice = Literal["ours", "theirs", "both"]

# What a source holds: the hash of its text or, for a conversation, of its tokens. None: nothing.
Content = str | None
# Equal to no content: a source that the common past of two merged histories does not agree about.
_UNDECIDED = "undecided"


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One thing to do: write the other state's document ``take`` under the name ``source`` (None: take the source out).
    ``over`` is the source's last record here, which goes with it if it is live."""

    source: str
    take: DocumentRecord | None
    over: DocumentRecord | None

    @property
    def replaced(self) -> DocumentRecord | None:
        """The document here that goes."""
        return None if self.over is None or self.over.removed else self.over


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything to do: ``labels`` go on blocks ``(label, start, stop)`` that are here already. ``conflicts`` are the sources
    about which a choice decided, ``refused`` those that may not come in, since they were erased."""

    edits: tuple[Edit, ...] = ()
    labels: tuple[tuple[str, int, int], ...] = ()
    conflicts: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def without_erased(self, erased: ErasedList) -> Plan:
        """The plan without what was erased from the memory."""
        refused = tuple(edit for edit in self.edits if edit.take and erased.reason(edit.source, edit.take.text_hash))
        kept = tuple(edit for edit in self.edits if edit not in refused)
        return replace(self, edits=kept, refused=tuple(edit.source for edit in refused))


def plan_merge(
    repository: Repository, ours: Snapshot, theirs: Snapshot, bases: Sequence[str], choice: Choice | None, name: str
) -> Plan:
    """The plan that brings into ``ours`` what ``theirs`` has changed since the commits ``bases``, where they parted.

    Without a ``choice`` a source that both changed raises MergeConflict, which lists them all. ``both`` keeps ours and adds
    theirs as ``source@name``.
    """
    candidates = repository.compare(ours, theirs)
    past = _Past(repository, theirs, candidates).merged(bases)
    edits: list[Edit] = []
    clashes: list[Change] = []
    for change in candidates:
        before = past.get(change.source)
        mine, other = content(ours, change.live_before), content(theirs, change.live_after)
        if other in (before, mine):
            continue
        if mine == before or choice == "theirs":
            edits.append(Edit(source=change.source, take=change.live_after, over=change.before))
        if mine != before:
            clashes.append(change)
    if clashes and choice is None:
        raise MergeConflict(
            f"{len(clashes)} changed on both sides: {listed(each.source for each in clashes)}. Nothing was written; choose "
            "--ours, --theirs or --both",
            tuple(each.source for each in clashes),
        )
    if choice == "both":
        edits += _both(repository, ours, theirs, clashes, name)
    labels = tuple(_missing_labels(ours, theirs))
    return Plan(edits=tuple(edits), labels=labels, conflicts=tuple(each.source for each in clashes))


def plan_revert(repository: Repository, now: Snapshot, before: Snapshot | None, after: Snapshot) -> Plan:
    """The plan that undoes in ``now`` what was changed from ``before`` (None: an empty memory) to ``after``.

    Raises MergeConflict, which lists them, for sources that were changed again since.
    """
    done = repository.compare(before, after) if before else repository.changes(None, after.commit_name)
    since = {change.source: change for change in repository.compare(after, now)}
    here = last_records(now, (change.source for change in done))
    edits, clashes = [], []
    for change in done:
        old = content(before, change.live_before) if before else None
        later = since.get(change.source)
        if later is not None and content(now, later.live_after) == old:
            continue
        if later is not None:
            clashes.append(change.source)
        edits.append(Edit(source=change.source, take=change.live_before, over=here.get(change.source)))
    if clashes:
        raise MergeConflict(
            f"{len(clashes)} changed again since that commit: {listed(clashes)}. Nothing was written; revert what changed them "
            "first, or add the text that you want",
            tuple(clashes),
        )
    return Plan(edits=tuple(edits))


def put_labels(writer: BranchWriter, labels: Iterable[tuple[str, int, int]]) -> None:
    """Puts the labels of a plan where they belong."""
    for name, start, stop in labels:
        writer.label_blocks([name], start, stop)


def _missing_labels(ours: Snapshot, theirs: Snapshot) -> Iterator[tuple[str, int, int]]:
    """Labels that documents carry there and the same ones here do not. Never the other way round: a merge takes no label off,
    so nothing is shown by it that was denied. Looks at every labelled document."""
    spans = [np.arange(start, stop, dtype=np.int64) for held in theirs.labels.ranges.values() for start, stop in held]
    if not spans:
        return
    blocks = np.concatenate(spans)
    labelled = [theirs.documents[ordinal] for ordinal in np.unique(theirs.documents_at(blocks)).tolist()]
    here = ours.documents.last_of(record.source for record in labelled)
    for record in labelled:
        twin = ours.documents[record.ordinal] if record.ordinal < len(ours.documents) else None
        if twin is None or (twin.source, twin.text_hash, twin.span) != (record.source, record.text_hash, record.span):
            twin = here.get(record.source)
            if twin is None or twin.removed or content(ours, twin) != content(theirs, record):
                continue
        there = set(ours.labels.parts(*twin.span))
        for name, start, stop in theirs.labels.parts(*record.span):
            if (name, start, stop) not in there:
                yield name, twin.start_block + start, twin.start_block + min(stop, twin.blocks)


def content(snapshot: Snapshot, record: DocumentRecord | None) -> Content:
    """What a source with this document holds."""
    if record is None:
        return None
    return record.text_hash or f"tokens {digest(document_tokens(snapshot, record).tobytes())}"


def listed(sources: Iterable[str], most: int = 10) -> str:
    """Names for a message."""
    names = list(sources)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class _Past:
    """What the sources in question held in commits before both sides."""

    def __init__(self, repository: Repository, theirs: Snapshot, candidates: Sequence[Change]) -> None:
        self._repository, self._theirs = repository, theirs
        self._now = {each.source: content(theirs, each.live_after) for each in candidates}

    def at(self, commit: str) -> dict[str, Content]:
        """By source, in one commit."""
        there = self._repository.snapshot(commit)
        held = dict(self._now)
        for change in self._repository.compare(there, self._theirs):
            if change.source in held:
                held[change.source] = content(there, change.live_before)
        return held

    def merged(self, commits: Sequence[str]) -> Mapping[str, Content]:
        """By source, where two histories parted that have several newest commits in common: as these merge, and undecided where
        they do not. Nothing for no commits."""
        if not commits:
            return {}
        first, *rest = commits
        held = self.at(first)
        for commit in rest:
            past, other = self.merged(self._repository.merge_bases(first, commit)), self.at(commit)
            held = {source: _three_way(past.get(source), held[source], other[source]) for source in held}
        return held


def _three_way(before: Content, mine: Content, other: Content) -> Content:
    if mine == other or other == before:
        return mine
    return other if mine == before else _UNDECIDED


def _both(repository: Repository, ours: Snapshot, theirs: Snapshot, clashes: Sequence[Change], name: str) -> list[Edit]:
    """Theirs beside ours. Where one side took the source out, the other's stays or comes back under its own name."""
    beside = {change.source: f"{change.source}@{name}" if change.live_before else change.source for change in clashes}
    here = last_records(ours, beside.values())
    edits = []
    for change in clashes:
        source = beside[change.source]
        over = here.get(source)
        held = None if over is None or over.removed else content(ours, over)
        if change.live_after is not None and held != content(theirs, change.live_after):
            edits.append(Edit(source=source, take=change.live_after, over=over))
    return edits
