"""Labels of parts of a document, carried over to a memory that cuts the same text into other blocks.

Between the two, a part is a range of characters. Everything is rounded outwards: a block that holds any part of a labelled
block's text carries the label, and where it is not known where blocks start, the whole document does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from megacontext.storage import DocumentRecord, Repository, Snapshot
from megacontext.storage.labels import Labels, Marks

CharRange = tuple[int, int]
# The end of any text.
END = 2**62


@dataclass(frozen=True, kw_only=True)
class DocumentMarks:
    """A document's own `labels` and `tags`, and the ranges of characters of the labels that parts of it carry."""

    labels: tuple[str, ...]
    tags: tuple[str, ...]
    spans: Mapping[str, tuple[CharRange, ...]]


def marks_of(view: Snapshot, record: DocumentRecord) -> DocumentMarks:
    """The labels and tags of a document and of its parts."""
    start, stop = record.span
    spans: dict[str, tuple[CharRange, ...]] = {}
    for name in sorted(set(view.labels.carried(start, stop)) - set(record.labels)):
        parts = ((max(a, start), min(b, stop)) for a, b in view.labels.held([name]))
        spans[name] = tuple(_chars(view, record, a, b) for a, b in parts if a < b)
    return DocumentMarks(labels=record.labels, tags=record.tags, spans=spans)


def set_marks(repository: Repository, branch: str, marks: Mapping[str, DocumentMarks], message: str) -> None:
    """Gives the live documents of a branch (by source) these labels and tags, in a commit if that changes any."""

    def change(view: Snapshot, labels: Labels) -> Labels:
        for record in view.documents.live():
            if (wanted := marks.get(record.source)) is not None:
                labels = _set(view, labels, record, wanted)
        return labels

    repository.label(change, branch, message=message)


def _set(view: Snapshot, labels: Labels, record: DocumentRecord, wanted: DocumentMarks) -> Labels:
    span = record.span
    if (set(record.labels), set(record.tags)) != (set(wanted.labels), set(wanted.tags)):
        labels = labels.mark(record, Marks(labels=wanted.labels, tags=wanted.tags))
    labels = labels.remove(labels.carried(*span), *span).add(wanted.labels, *span)
    for name, ranges in wanted.spans.items():
        for first, last in ranges:
            labels = labels.add([name], *_blocks(view, record, first, last))
    return labels


def _chars(view: Snapshot, record: DocumentRecord, start: int, stop: int) -> CharRange:
    """The characters of a document's blocks `start:stop`."""
    first, last = record.span
    begin = 0 if start == first else int(view.spans_at(np.array([start]))[0][0])
    end = END if stop == last else int(view.spans_at(np.array([stop]))[0][0])
    return (0, END) if begin < 0 or end < 0 else (begin, end)


def _blocks(view: Snapshot, record: DocumentRecord, first: int, last: int) -> tuple[int, int]:
    """The blocks of a document that hold any of the characters `first:last`."""
    start, stop = record.span
    chars = view.spans_at(np.arange(start, stop))[0]
    if (chars < 0).any():
        return start, stop
    # The block that holds a character is the last one that starts at or before it.
    low = max(int(np.searchsorted(chars, first, side="right")) - 1, 0)
    high = int(np.searchsorted(chars, last, side="left"))
    return start + low, start + max(high, low + 1)
