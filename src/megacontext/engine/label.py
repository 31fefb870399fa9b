"""Labels and tags of what a memory holds: set on a document or on some of its lines, and listed.

A label is policy: whoever opens the memory with ``deny=[label]`` sees nothing of what carries it. Blocks carry labels, so
lines are rounded outwards to the blocks that hold any part of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megacontext.core import Timeline
from megacontext.engine.history import History
from megacontext.errors import ConfigError, InvalidInput
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
        """
        added, removed = checked_names(add), checked_names(remove)
        tagged, untagged = checked_names(tag, "tag"), checked_names(untag, "tag")
        if twice := (set(added) & set(removed)) | (set(tagged) & set(untagged)):
            raise ConfigError(f"{', '.join(sorted(twice))}: add it or remove it, not both")
        if lines is not None and (tagged or untagged):
            raise ConfigError("tags belong to whole documents: name it without lines")

        def change(snapshot: Snapshot, labels: Labels) -> Labels:
            record = self.find_document(document, snapshot)
            start, stop = record.span if lines is None else blocks_of_lines(snapshot, record, lines)
            labels = labels.add(added, start, stop).remove(removed, start, stop)
            for version in snapshot.documents.find(record.source):
                whole = lines is None or version.ordinal < record.ordinal
                gone = removed if lines is None else ()
                if whole:
                    labels = labels.add(added, *version.span).remove(gone, *version.span)
                    marks = labels.marks(version)
                    labels = labels.mark(version, Marks(labels=_changed(marks.labels, added, gone), tags=marks.tags))
            marks = labels.marks(record)
            return labels.mark(record, Marks(labels=marks.labels, tags=_changed(marks.tags, tagged, untagged)))

        if added or removed or tagged or untagged:
            signs = [*(f"+{name}" for name in (*added, *tagged)), *(f"-{name}" for name in (*removed, *untagged))]
            self.repository.label(change, branch, message=message or f"Label {' '.join(signs)}", author=author)
        return self.labels_of(document, branch)

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
