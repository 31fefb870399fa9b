"""Rows in two kinds of places: a growing array in memory, and a column cut into sealed pieces with a tail."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from megacontext.errors import CorruptObject, UnknownReference
from megacontext.storage.gather import LARGEST_ROW, address, gather
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
        self._row = tail.itemsize * math.prod(tail.shape[1:])
        self._pieces = _Pieces(-(-tail_start // piece), tail)
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
        index = np.asarray(index, np.int64)
        # Seen without a sign, a negative index is larger than any other.
        highest = int(index.view(np.uint64).max(initial=0)) if index.flags.c_contiguous else self.count
        if highest >= self.count and len(index):
            self._refuse(index)
        number = index // self._piece
        offset = index - number * self._piece
        if highest >= self._tail_start:
            in_tail = index >= self._tail_start
            number[in_tail] = _TAIL
            offset[in_tail] = index[in_tail] - self._tail_start
        rows = self._gathered(number, offset)
        rows.setflags(write=False)
        return rows

    def _refuse(self, index: I64) -> None:
        outside = index[(index < 0) | (index >= self.count)]
        if len(outside):
            raise UnknownReference(f"no {self._name} {int(outside[0])}; there are {self.count}")

    def _gathered(self, number: I64, offset: I64) -> Array:
        """A copy of row `offset` of piece `number` for each of int64 [k] pairs."""
        pieces = self._known()
        addresses = pieces.addresses[number]
        if not addresses.all():
            for missing in np.unique(number[addresses == 0]).tolist():
                self._fetched(pieces, missing)
            addresses = pieces.addresses[number]
        if self._row <= LARGEST_ROW:
            return gather(addresses + offset * self._row, self._tail)
        parts = zip(number.tolist(), offset.tolist(), strict=True)
        return np.stack([pieces.arrays[each][at] for each, at in parts]) if len(number) else self._tail[:0]

    def _known(self) -> _Pieces:
        """The pieces seen so far; others begin anew where they have become many, as each may hold a file mapped."""
        if len(self._pieces.arrays) > REMEMBERED:
            self._pieces = _Pieces(len(self._pieces.addresses) - 1, self._tail)
        return self._pieces

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
    """Arrays by number, the tail among them, and their addresses, int64 [count + 1], 0 where one is not known yet."""

    def __init__(self, count: int, tail: Array) -> None:
        self.arrays: dict[int, Array] = {}
        self.addresses: I64 = np.zeros(count + 1, np.int64)
        self.add(_TAIL, np.ascontiguousarray(tail))

    def add(self, number: int, array: Array) -> None:
        """Keeps an array alive, then tells where it lies: another thread may read at any moment."""
        array = self.arrays.setdefault(number, array)
        self.addresses[number] = address(array)
