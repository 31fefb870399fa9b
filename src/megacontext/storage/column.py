"""Rows in two kinds of places: a growing array in memory, and a column cut into sealed pieces with a tail."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from megacontext.errors import CorruptObject, UnknownReference
from megacontext.storage.gather import LARGEST_ROW, gather, position, reachable, row_bytes
from megacontext.storage.tensors import I64, Array

# How many pieces a column remembers, as many as a reader keeps objects.
REMEMBERED = 8192
# The number of the tail among the pieces.
_TAIL = -1


class Rows:
    """A growing array. Appending is amortised O(1); a view that was handed out never changes, as long as
    no row inside it is cut off again by `truncate`."""

    __slots__ = ("_buffer", "count")

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self._buffer: Array = np.empty((0, *shape), dtype)
        self.count = 0

    def append(self, rows: Array) -> None:
        """Adds rows [n, *shape]; they are copied."""
        stop = self.count + len(rows)
        if stop > len(self._buffer):
            capacity = max(stop, 2 * len(self._buffer), 64)
            grown = np.empty((capacity, *self._buffer.shape[1:]), self._buffer.dtype)
            grown[: self.count] = self._buffer[: self.count]
            self._buffer = grown
        self._buffer[self.count : stop] = rows
        self.count = stop

    def view(self, start: int = 0, stop: int | None = None) -> Array:
        """Rows `start:stop` as a read-only array without a copy."""
        view = self._buffer[start : self.count if stop is None else min(stop, self.count)]
        view.setflags(write=False)
        return view

    def truncate(self, count: int) -> None:
        """Keeps the first `count` rows."""
        self.count = count

    def after(self, start: int) -> Rows:
        """A new array with a copy of the rows from `start` on."""
        rows = Rows(self._buffer.shape[1:], self._buffer.dtype.type)
        rows.append(self._buffer[start : self.count])
        return rows


class Column:
    """An immutable column of a tree: pieces of `piece` rows, fetched by number, then a tail in memory.

    The cost of a read depends on the rows asked for (and log n to find a piece), not on the column's length.
    Several threads may read at once. Raises CorruptObject where a piece does not hold the rows that it should.
    """

    def __init__(self, name: str, fetch: Callable[[int], Array], piece: int, tail_start: int, tail: Array) -> None:
        self._name = name
        self._fetch = fetch
        self._piece = piece
        self._tail_start = tail_start
        self._tail = tail
        self._pieces = self._none()
        self.count = tail_start + len(tail)

    def range(self, start: int, stop: int) -> Array:
        """Rows `start:stop`, read-only; raises UnknownReference outside the column."""
        if not 0 <= start <= stop <= self.count:
            raise UnknownReference(f"no {self._name} {start}:{stop}; there are {self.count}")
        parts = []
        at = start
        while at < min(stop, self._tail_start):
            number, offset = divmod(at, self._piece)
            end = min(stop, self._tail_start, (number + 1) * self._piece)
            parts.append(self._fetched(self._known(), number)[offset : offset + end - at])
            at = end
        if stop > self._tail_start or not parts:
            low = max(start - self._tail_start, 0)
            parts.append(self._tail[low : max(stop - self._tail_start, low)])
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        rows.setflags(write=False)
        return rows

    def at(self, index: I64) -> Array:
        """Rows at int64 [k] indices, in that order; raises UnknownReference outside the column."""
        # A copy: what was checked must not be changed by anybody before it is used.
        index = np.array(index, np.int64, order="C")
        # Seen without a sign, a negative index is larger than any other.
        highest = int(index.view(np.uint64).max(initial=0))
        if highest >= self.count and len(index):
            self._refuse(index)
        number, row = index // self._piece, index % self._piece
        if highest >= self._tail_start:
            behind = index >= self._tail_start
            number[behind] = _TAIL
            row[behind] = index[behind] - self._tail_start
        rows = self._gathered(number, row)
        rows.setflags(write=False)
        return rows

    def _refuse(self, index: I64) -> None:
        outside = index[(index < 0) | (index >= self.count)]
        if len(outside):
            raise UnknownReference(f"no {self._name} {int(outside[0])}; there are {self.count}")

    def _gathered(self, number: I64, row: I64) -> Array:
        """Copies of the rows with int64 [k] these numbers in the pieces with these."""
        pieces = self._known()
        # The count first: another thread may add a piece meanwhile, which tells its count last.
        count = pieces.count.take(number)
        if row_bytes(self._tail) <= LARGEST_ROW and pieces.reachable:
            rows = gather(pieces.first.take(number), row, count, self._tail)
            if rows is not None:
                return rows
        for each in np.unique(number).tolist():
            self._fetched(pieces, each)
        parts = [pieces.arrays[each][at] for each, at in zip(number.tolist(), row.tolist(), strict=True)]
        return np.stack(parts) if parts else self._tail[:0]

    def _known(self) -> _Pieces:
        """The pieces seen so far; begun anew where they have become many, as each may hold a file mapped."""
        if len(self._pieces.arrays) > REMEMBERED:
            self._pieces = self._none()
        return self._pieces

    def _none(self) -> _Pieces:
        pieces = _Pieces(-(-self._tail_start // self._piece))
        pieces.add(_TAIL, self._tail)
        return pieces

    def _fetched(self, pieces: _Pieces, number: int) -> Array:
        """A piece, remembered: the pieces of a column never change. Raises CorruptObject for one of another form."""
        if number not in pieces.arrays:
            array, due = self._fetch(number), min(self._piece, self._tail_start - number * self._piece)
            # Rows are gathered by address: there must be as many, and as large, as are counted on.
            if array.dtype != self._tail.dtype or array.shape[1:] != self._tail.shape[1:] or len(array) < due:
                expected = f"{due} rows of {self._tail.shape[1:]} {self._tail.dtype}"
                raise CorruptObject(f"piece {number} of {self._name} holds {array.shape} {array.dtype}, not {expected}")
            pieces.add(number, array)
        return pieces.arrays[number]


class _Pieces:
    """Arrays by number, the tail among them; int64 [count + 1] `first`, where each begins, and `count`, how many rows it
    has: none for a piece that was not fetched yet. `reachable`: whether rows of all of them can be gathered."""

    def __init__(self, count: int) -> None:
        self.arrays: dict[int, Array] = {}
        self.first: I64 = np.zeros(count + 1, np.int64)
        self.count: I64 = np.zeros(count + 1, np.int64)
        self.reachable = True
        self._adding = threading.Lock()

    def add(self, number: int, array: Array) -> None:
        """Keeps an array alive; then tells where it lies, and last that it is there: another thread may read at any moment."""
        with self._adding:
            array = self.arrays.setdefault(number, np.require(array, requirements=["C", "A"]))
            self.reachable = self.reachable and reachable(array)
            self.first[number] = position(array)
            self.count[number] = len(array)
