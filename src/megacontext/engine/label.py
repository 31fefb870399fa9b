"""Labels and tags of what a memory holds: set on a document or on some of its lines, and listed.

A label is policy: whoever opens the memory with ``deny=[label]`` sees nothing of what carries it. Blocks carry labels, so
lines are rounded outwards to the blocks that hold any part of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megacontext.core import Timeline
from megacontext.engine.history import History
from megacontext.errors import ConfigError, InvalidInput
from megacontext.index.source_patterns import choose
from megacontext.storage import DocumentRecord, Snapshot
from megacontext.storage.labels import Labels, Marks, checked_names

Lines = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A document's labels and tags, after a change or as they are.

    ``labels`` and ``tags`` are the document's own; ``blocks`` maps each label to how many of its ``of`` blocks carry it.
    """

    source: str
    labels: tuple[str, ...]
    tags: tuple[str, ...]
    blocks: dict[str, int]
    of: int
    commit: str

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**self.__dict__, "labels": list(self.labels), "tags": list(self.tags)}


@dataclass(frozen=True)
class _Changes:
    """What is put on documents and taken off."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    tagged: tuple[str, ...]
    untagged: tuple[str, ...]

    @classmethod
    def checked(cls, add: Sequence[str], remove: Sequence[str], tag: Sequence[str], untag: Sequence[str]) -> _Changes:
        """Names that can be labels and tags. Raises InvalidInput, ConfigError."""
        found = cls(checked_names(add), checked_names(remove), checked_names(tag, "tag"), checked_names(untag, "tag"))
        if twice := (set(found.added) & set(found.removed)) | (set(found.tagged) & set(found.untagged)):
            raise ConfigError(f"{', '.join(sorted(twice))}: add it or remove it, not both")
        return found

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.tagged or self.untagged)

    def __str__(self) -> str:
        put, taken = (*self.added, *self.tagged), (*self.removed, *self.untagged)
        return " ".join([*(f"+{name}" for name in put), *(f"-{name}" for name in taken)])

    def of(self, snapshot: Snapshot, labels: Labels, record: DocumentRecord, lines: Lines | None) -> Labels:
        """The labels with a document's, or those of lines of it, changed."""
        start, stop = record.span if lines is None else blocks_of_lines(snapshot, record, lines)
        labels = labels.add(self.added, start, stop).remove(self.removed, start, stop)
        for version in snapshot.documents.find(record.source):
            gone = self.removed if lines is None else ()
            if lines is None or version.ordinal < record.ordinal:
                labels = labels.add(self.added, *version.span).remove(gone, *version.span)
                marks = labels.marks(version)
                labels = labels.mark(version, Marks(labels=_changed(marks.labels, self.added, gone), tags=marks.tags))
        marks = labels.marks(record)
        return labels.mark(record, Marks(labels=marks.labels, tags=_changed(marks.tags, self.tagged, self.untagged)))


class Labelling(History, ABC):
    """What a memory can do with labels."""

    @abstractmethod
    def find_document(self, source: str, snapshot: Snapshot | None = None) -> DocumentRecord:
        """The live document with this source."""

    def label(
        self,
        document: str,
        *,
        lines: Lines | None = None,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        tag: Sequence[str] = (),
        untag: Sequence[str] = (),
        branch: str | None = None,
        message: str = "",
        author: str = "",
    ) -> Labelled:
        """Put labels on a document, or on lines ``(first, last)`` of it, take labels off, and change its tags, in a commit.

        A label counts from now on for every commit that holds the same blocks, older ones and other branches included. On a
        document it is on all its versions; on lines, on the whole of its earlier ones, whose lines were others. A later
        version has the labels of the one that it replaces. Without anything to change nothing is written.

        One that is taken off still counts while a branch or tag has it that this one was not made from: take it off there, too.
        A merge brings labels along and takes none off, so that it shows nothing that was denied; where the branch is merely
        moved on (everything that it has is in the other's history), it has the labels of the other.
        """
        changes = _Changes.checked(add, remove, tag, untag)
        if lines is not None and (changes.tagged or changes.untagged):
            raise ConfigError("tags belong to whole documents: name it without lines")
        self._relabel(lambda snapshot: [self.find_document(document, snapshot)], changes, lines, branch, message, author)
        return self.labels_of(document, branch)

    def label_all(
        self,
        pattern: str,
        *,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        tag: Sequence[str] = (),
        untag: Sequence[str] = (),
        branch: str | None = None,
        message: str = "",
        author: str = "",
    ) -> list[Labelled]:
        """The same for all live documents of a folder, or that fit a pattern (see ``index.source_patterns``), in one commit.
        UnknownReference, with nothing changed, where there are none, or where it is the end of several documents."""

        def chosen(snapshot: Snapshot) -> list[DocumentRecord]:
            live = {record.source: record for record in snapshot.documents.live() if not record.open}
            found = choose(live, pattern)
            if len(found) > 1 and not (pattern.endswith("/") or set("*?[") & set(pattern)):
                found = [] if any(source.endswith("/" + pattern) for source in found) else found
            return [live[source] for source in found] or [self.find_document(pattern, snapshot)]

        self._relabel(chosen, _Changes.checked(add, remove, tag, untag), None, branch, message, author)
        return [self.labels_of(record.source, branch) for record in chosen(self.snapshot(branch))]

    def _relabel(
        self,
        chosen: Callable[[Snapshot], list[DocumentRecord]],
        changes: _Changes,
        lines: Lines | None,
        branch: str | None,
        message: str,
        author: str,
    ) -> None:
        def change(snapshot: Snapshot, labels: Labels) -> Labels:
            for record in chosen(snapshot):
                labels = changes.of(snapshot, labels, record, lines)
            return labels

        if changes:
            self.repository.label(change, branch, message=message or f"Label {changes}", author=author)

    def labels_of(self, document: str, reference: str | None = None) -> Labelled:
        """The labels and tags of a live document."""
        snapshot = self.snapshot(reference)
        record = self.find_document(document, snapshot)
        start, stop = record.span
        held = {name: snapshot.labels.held([name]) for name in snapshot.labels.carried(start, stop)}
        counts = {name: sum(max(min(b, stop) - max(a, start), 0) for a, b in spans) for name, spans in held.items()}
        return Labelled(
            source=record.source,
            labels=record.labels,
            tags=record.tags,
            blocks=counts,
            of=record.blocks,
            commit=snapshot.commit_name,
        )

    def labels(self, reference: str | None = None) -> dict[str, int]:
        """How many live blocks carry each label, by label; of what this reader may see."""
        snapshot = self.snapshot(reference)
        timeline, held = snapshot.timeline(), snapshot.labels
        counts = {name: _live(timeline, held.held([name])) for name in sorted(held.ranges)}
        return {name: count for name, count in counts.items() if count}


def blocks_of_lines(snapshot: Snapshot, record: DocumentRecord, lines: Lines) -> tuple[int, int]:
    """The blocks ``(start, stop)`` of a document that hold any part of lines ``(first, last)``, counted from 1.

    Raises InvalidInput for lines that it has not, and for a document without line numbers.
    """
    first, last = lines
    if not 1 <= first <= last <= record.lines:
        raise InvalidInput(f"{record.source} has no lines {first} to {last}: they go from 1 to {record.lines}")
    blocks = np.arange(*record.span, dtype=np.int64)
    begins = snapshot.spans_at(blocks)[1]
    if not len(blocks) or (begins < 1).any():
        raise InvalidInput(f"where the lines of {record.source} are is not known: label the whole document")
    ends = np.append(begins[1:], record.lines)
    inside = blocks[(begins <= last) & (ends >= first)]
    return int(inside[0]), int(inside[-1]) + 1


def _changed(names: Sequence[str], added: Sequence[str], removed: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted((set(names) | set(added)) - set(removed)))


def _live(timeline: Timeline, ranges: Sequence[tuple[int, int]]) -> int:
    return sum(len(timeline.present(start, min(stop, timeline.blocks))) for start, stop in ranges)
