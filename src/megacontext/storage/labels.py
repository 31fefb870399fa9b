"""Policy labels: which blocks carry which label, and which documents' labels and tags were changed after the fact.

A document's own labels come in with its record; a commit folds them into block ranges, so that what a reader is denied
is found in one object, whatever number of documents there are. Labels of line spans, and all later changes, are made
there too (`Labelling`). A label set on one commit counts for all others too: see `access`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from megacontext.core.ranges import BlockRange, joined
from megacontext.errors import CorruptObject, InvalidInput
from megacontext.storage.documents import DocumentRecord
from megacontext.storage.objects import ObjectReader
from megacontext.storage.tensors import encode

KIND = "labels"
_RANGES = "ranges:"

Ranges = tuple[BlockRange, ...]


@dataclass(frozen=True, kw_only=True)
class Marks:
    """A document's labels and tags as they are now, where they differ from its record's. Sorted."""

    labels: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Immutable. `ranges` maps a label to the blocks that carry it, joined; `documents` an ordinal to its marks. `before`
    names the object with the labels that these were made from ('' for none)."""

    ranges: Mapping[str, Ranges] = field(default_factory=dict)
    documents: Mapping[int, Marks] = field(default_factory=dict)
    before: str = field(default="", compare=False)

    def __bool__(self) -> bool:
        return bool(self.ranges or self.documents)

    def marks(self, record: DocumentRecord) -> Marks:
        """The labels and tags of a document."""
        return self.documents.get(record.ordinal) or Marks(labels=record.labels, tags=record.tags)

    def current(self, record: DocumentRecord) -> DocumentRecord:
        """The record with the labels and tags that it has now."""
        marks = self.documents.get(record.ordinal)
        return record if marks is None else replace(record, labels=marks.labels, tags=marks.tags)

    def carried(self, start: int, stop: int) -> tuple[str, ...]:
        """The labels that any of the blocks `start:stop` carries, sorted."""
        inside = (name for name, held in self.ranges.items() if any(max(a, start) < min(b, stop) for a, b in held))
        return tuple(sorted(inside))

    def parts(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """Labels and the blocks of `start:stop` that carry them, counted from `start`."""
        for name in self.carried(start, stop):
            for a, b in self.ranges[name]:
                if max(a, start) < min(b, stop):
                    yield name, max(a, start) - start, min(b, stop) - start

    def held(self, names: Iterable[str]) -> Ranges:
        """The blocks that carry any of the labels."""
        return joined(span for name in set(names) for span in self.ranges.get(name, ()))

    def growing(self, records: Iterable[DocumentRecord], since: int) -> Labels:
        """With the labels of documents on those of their blocks that lie behind the first `since`."""
        ranges: dict[str, list[BlockRange]] = {}
        for record in records:
            start, stop = max(record.start_block, since), record.start_block + record.blocks
            for name in self.marks(record).labels if start < stop else ():
                ranges.setdefault(name, []).append((start, stop))
        more = {name: joined((*self.ranges.get(name, ()), *spans)) for name, spans in ranges.items()}
        return replace(self, ranges={**self.ranges, **more}) if more else self

    def add(self, names: Iterable[str], start: int, stop: int) -> Labels:
        """With these labels on blocks `start:stop` as well."""
        more = {name: joined((*self.ranges.get(name, ()), (start, stop))) for name in names} if start < stop else {}
        return replace(self, ranges={**self.ranges, **more})

    def remove(self, names: Iterable[str], start: int, stop: int) -> Labels:
        """Without these labels on blocks `start:stop`."""
        less = {name: _without(self.ranges.get(name, ()), start, stop) for name in names}
        return replace(self, ranges={name: held for name, held in {**self.ranges, **less}.items() if held})

    def mark(self, record: DocumentRecord, marks: Marks) -> Labels:
        """With other labels and tags of a document; those of its blocks stay as they are."""
        others = {ordinal: each for ordinal, each in self.documents.items() if ordinal != record.ordinal}
        own = Marks(labels=tuple(sorted(set(marks.labels))), tags=tuple(sorted(set(marks.tags))))
        # A record that a snapshot shows has its marks already, so being like it does not mean that they may go.
        if record.ordinal in self.documents or (set(own.labels), set(own.tags)) != (set(record.labels), set(record.tags)):
            others[record.ordinal] = own
        return replace(self, documents=others)

    def to_bytes(self) -> bytes:
        """The object's content."""
        arrays = {_RANGES + name: np.array(spans, np.int64).reshape(-1, 2) for name, spans in self.ranges.items()}
        marks = {str(at): {"labels": each.labels, "tags": each.tags} for at, each in self.documents.items()}
        metadata = {"kind": KIND, "documents": json.dumps(marks, sort_keys=True), "before": self.before}
        return encode(arrays, metadata)


def load_labels(reader: ObjectReader, name: str) -> Labels:
    """The labels in the object `name`; none for ''. Raises CorruptObject, MissingObject."""
    if not name:
        return Labels()
    arrays, metadata = reader.tensors(name, KIND)
    try:
        marks = {
            int(at): Marks(labels=tuple(each["labels"]), tags=tuple(each["tags"]))
            for at, each in json.loads(metadata["documents"]).items()
        }
        before = metadata["before"]
        ranges = {key.removeprefix(_RANGES): _spans(array.tolist()) for key, array in arrays.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptObject(f"object {name} should hold labels of blocks and documents") from error
    return Labels(ranges=ranges, documents=marks, before=before)


def checked_names(names: Iterable[str], what: str = "label") -> tuple[str, ...]:
    """Names sorted, each once. Raises InvalidInput for one that is empty, has a comma or white space at an end."""
    if isinstance(names, str):
        raise InvalidInput(f"give the {what}s as a list, not as the one text {names!r}")
    for name in names:
        if not name or name != name.strip() or "," in name or not name.isprintable():
            raise InvalidInput(f"{name!r} is no {what}: it is a printable word or words without a comma")
    return tuple(sorted(set(names)))


def _without(ranges: Ranges, start: int, stop: int) -> Ranges:
    parts = (piece for a, b in ranges for piece in ((a, min(b, start)), (max(a, stop), b))) if start < stop else ranges
    return joined((a, b) for a, b in parts if a < b)


def _spans(pairs: list[list[int]]) -> Ranges:
    flat = [each for a, b in pairs for each in (a, b)]
    if any(a >= b for a, b in pairwise(flat)) or (flat and flat[0] < 0):
        raise ValueError("ranges must be sorted and disjoint")
    return tuple((a, b) for a, b in pairs)
