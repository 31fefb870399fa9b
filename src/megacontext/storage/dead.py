"""Dead blocks: superseded or removed, but still there. A timeline keeps its length; what is dead is skipped by readers.

A commit names its dead ranges in one object, so that opening a memory reads one more small file, and none where nothing
is dead.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from megacontext.errors import CorruptObject
from megacontext.storage.hashing import digest
from megacontext.storage.objects import ObjectReader
from megacontext.storage.tensors import I64, encode

DEAD = "dead"


class DeadRanges:
    """Sorted, disjoint ranges of blocks that do not touch; grows by `add`, in O(log k) and a move of memory."""

    __slots__ = ("_starts", "_stops")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add(start, stop)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._stops, strict=True))

    def add(self, start: int, stop: int) -> None:
        """Blocks `start:stop` are dead too; what touches is joined."""
        if start >= stop:
            return
        low, high = bisect_left(self._stops, start), bisect_right(self._starts, stop)
        if low < high:
            start, stop = min(start, self._starts[low]), max(stop, self._stops[high - 1])
        self._starts[low:high] = [start]
        self._stops[low:high] = [stop]

    def copy(self) -> DeadRanges:
        """A set of its own."""
        other = DeadRanges()
        other._starts, other._stops = self._starts.copy(), self._stops.copy()
        return other

    def without(self, other: DeadRanges) -> list[tuple[int, int]]:
        """Ranges that are dead here and not in `other`."""
        cuts = sorted({*self._starts, *self._stops, *other._starts, *other._stops})
        return [(a, b) for a, b in pairwise(cuts) if self._holds(a) and not other._holds(a)]

    def within(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The dead parts of blocks `start:stop`, counted from `start`."""
        low, high = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        pairs = zip(self._starts[low:high], self._stops[low:high], strict=True)
        return [(max(a, start) - start, min(b, stop) - start) for a, b in pairs]

    def mask_name(self, start: int, stop: int) -> str:
        """A name for which of blocks `start:stop` are dead: '' for none, else a hash."""
        inside = self.within(start, stop)
        return digest(np.array(inside, "<i8").tobytes()) if inside else ""

    def to_bytes(self) -> bytes:
        """The object's content."""
        ranges: I64 = np.array([self._starts, self._stops], np.int64).T
        return encode({"ranges": np.ascontiguousarray(ranges)}, {"kind": DEAD})

    def _holds(self, block: int) -> bool:
        at = bisect_right(self._starts, block) - 1
        return at >= 0 and block < self._stops[at]


def load_dead(reader: ObjectReader, name: str) -> DeadRanges:
    """The ranges in the object `name`; none for ''. Raises CorruptObject, MissingObject."""
    if not name:
        return DeadRanges()
    ranges = reader.tensors(name, DEAD).arrays.get("ranges")
    if ranges is None or ranges.ndim != 2 or ranges.shape[1] != 2 or ranges.dtype != np.int64:
        raise CorruptObject(f"object {name} should hold ranges of dead blocks")
    flat = ranges.ravel()
    if len(flat) and (flat[0] < 0 or not bool((np.diff(flat) > 0).all())):
        raise CorruptObject(f"the dead ranges in object {name} are not sorted and disjoint")
    dead = DeadRanges()
    dead._starts, dead._stops = ranges[:, 0].tolist(), ranges[:, 1].tolist()
    return dead
