"""What a snapshot may not give out, enforced where bytes become rows.

A repository opened with `deny` gives out snapshots with a `Guard`: whatever leaves them by block or node is asked about
here, so that no caller and no cache can forget to. Denied are all blocks with one of the labels, each gist whose span
holds one of them, and the records of documents of which nothing else is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

import numpy as np

from megacontext.core.node import BoolArray, node_blocks
from megacontext.core.ranges import BlockRange, BlockRanges, joined
from megacontext.core.timeline import Timeline
from megacontext.errors import AccessDenied
from megacontext.storage.column import Column
from megacontext.storage.documents import DocumentRecord
from megacontext.storage.hashing import digest
from megacontext.storage.labels import Labels, Ranges
from megacontext.storage.tensors import I64, Array


class Guard:
    """What a snapshot may not give out: `spans` of blocks, joined, and documents with labels in `deny`."""

    def __init__(self, deny: frozenset[str], labels: Labels, blocks: int, elsewhere: Iterable[BlockRange] = ()) -> None:
        self.deny = deny
        found = joined((*labels.held(deny), *elsewhere))
        self.spans: Ranges = tuple((start, min(stop, blocks)) for start, stop in found if start < blocks)
        self._ranges = BlockRanges.of(self.spans)

    @cached_property
    def key(self) -> str:
        """A name for what is denied."""
        return digest(np.array(self.spans, "<i8").tobytes())

    def column(self, rows: Column, lod: int) -> GuardedColumn:
        """A column of nodes of a level (0: of raw blocks) that gives out no row with something denied in it."""
        return GuardedColumn(rows, self, lod)

    def check(self, lod: int, start: I64, stop: I64) -> None:
        """Raises AccessDenied if any of the block spans holds a denied block."""
        held = self._ranges.touch(start, stop)
        if held.any():
            first = int(start[held][0]) // node_blocks(lod, 1)[0]
            what = f"block {first}" if lod == 0 else f"the gist of ({lod}, {first})"
            raise AccessDenied(
                f"{what} holds what this reader is denied ({', '.join(sorted(self.deny))}): take only what the snapshot's "
                "timeline() shows as present, or open the memory without deny"
            )

    def denied_at(self, blocks: I64) -> BoolArray:
        """Which of the blocks at int64 [k] indices are denied, bool [k]."""
        return self._ranges.cover(blocks, blocks + 1)

    def names(self, segments: list[str], blocks: int) -> list[str]:
        """The names of segments of so many blocks each, other ones for those in which something is denied."""
        parts: dict[int, list[int]] = {}
        for start, stop in self.spans:
            for at in range(start // blocks, min(-(-stop // blocks), len(segments))):
                parts.setdefault(at, []).extend((max(start - at * blocks, 0), min(stop - at * blocks, blocks)))
        names = list(segments)
        for at, part in parts.items():
            names[at] = digest(np.array(part, "<i8").tobytes() + segments[at].encode())
        return names

    def touches(self, start: int, stop: int) -> bool:
        """Whether any of the blocks `start:stop` is denied."""
        return start < stop and bool(self._ranges.touch(np.array([start]), np.array([stop]))[0])

    def hides(self, record: DocumentRecord, replaced: DocumentRecord | None) -> bool:
        """Whether a document is denied: all its blocks are; one without blocks by its labels, or, a tombstone, with the
        document that it `replaced`."""
        start, stop = record.span
        if start < stop:
            return bool(self._ranges.cover(np.array([start]), np.array([stop]))[0])
        return bool(self.deny & set(record.labels)) or (replaced is not None and self.hides(replaced, None))

    def shown(self, record: DocumentRecord) -> DocumentRecord:
        """The record without what tells of denied parts: the hash and the bytes of the whole text."""
        return replace(record, text_hash="", original="") if self.touches(*record.span) else record

    def timeline(self, timeline: Timeline) -> Timeline:
        """The timeline as this reader sees it."""
        return timeline.deny(self.spans)


class GuardedColumn:
    """A column behind a guard."""

    def __init__(self, rows: Column, guard: Guard, lod: int) -> None:
        self._rows, self._guard, self._lod = rows, guard, lod
        self._width = node_blocks(lod, 1)[0]
        self.count = rows.count

    def range(self, start: int, stop: int) -> Array:
        """Rows `start:stop`; see `Column.range`. Raises AccessDenied if one of them is denied."""
        if start < stop:
            span = np.array([start, stop], np.int64) * self._width
            self._guard.check(self._lod, span[:1], span[1:])
        return self._rows.range(start, stop)

    def at(self, index: I64) -> Array:
        """Rows at int64 [k] indices; see `Column.at`. Raises AccessDenied if one of them is denied."""
        index = np.asarray(index, np.int64)
        self._guard.check(self._lod, index * self._width, (index + 1) * self._width)
        return self._rows.at(index)
