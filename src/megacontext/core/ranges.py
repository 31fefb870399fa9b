"""Sets of blocks as sorted, disjoint ranges, asked about with arrays of spans."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from megacontext.core.node import BoolArray, IntArray

BlockRange = tuple[int, int]


def joined(spans: Iterable[BlockRange]) -> tuple[BlockRange, ...]:
    """The same blocks as the fewest ranges ``(start, stop)``, ascending; spans may overlap or touch."""
    ranges: list[BlockRange] = []
    for start, stop in sorted(spans):
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], stop))
        else:
            ranges.append((start, stop))
    return tuple(ranges)


@dataclass(frozen=True, eq=False)
class BlockRanges:
    """Joined ranges as columns: ``starts`` and ``stops`` int64[k], ascending, with a gap between any two."""

    starts: IntArray
    stops: IntArray

    @classmethod
    def of(cls, ranges: Iterable[BlockRange]) -> BlockRanges:
        """From ranges that are sorted, disjoint and joined."""
        pairs = np.array(list(ranges), np.int64).reshape(-1, 2)
        return cls(np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]))

    @property
    def total(self) -> int:
        """How many blocks they hold."""
        return int((self.stops - self.starts).sum())

    def cover(self, start: IntArray, stop: IntArray) -> BoolArray:
        """Whether every block of each span ``[start, stop)`` is held, bool of the spans' shape."""
        if not self.starts.size:
            return np.zeros(np.shape(start), np.bool_)
        # Ranges are joined, so a span that is held wholly lies inside exactly one of them.
        at = np.searchsorted(self.starts, start, side="right") - 1
        inside: BoolArray = (at >= 0) & (stop <= self.stops[at])
        return inside

    def stop_of(self, blocks: IntArray) -> IntArray:
        """For each block int64[k] that is held the stop of its range, else itself."""
        if not self.starts.size:
            return blocks
        at = np.searchsorted(self.starts, blocks, side="right") - 1
        held = (at >= 0) & (blocks < self.stops[at])
        return np.where(held, self.stops[at], blocks)

    def touch(self, start: IntArray, stop: IntArray) -> BoolArray:
        """Whether any block of each (not empty) span ``[start, stop)`` is held, bool of the spans' shape."""
        if not self.starts.size:
            return np.zeros(np.shape(start), np.bool_)
        # The first range that ends behind the span's start is the first that may begin before its stop.
        at = np.searchsorted(self.stops, start, side="right")
        begins = np.append(self.starts, np.iinfo(np.int64).max)
        held: BoolArray = begins[at] < stop
        return held
