"""Rows in two kinds of places: a growing array in memory, and a column cut into sealed pieces with a tail."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from megacontext.errors import UnknownReference
from megacontext.storage.tensors import I64, Array

# How many pieces a column remembers; each may hold a file mapped.
REMEMBERED = 1024


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
    """

    def __init__(self, name: str, fetch: Callable[[int], Array], piece: int, tail_start: int, tail: Array) -> None:
        self._name = name
        self._fetch = fetch
        self._piece = piece
        self._tail_start = tail_start
        self._tail = tail
        self._pieces: dict[int, Array] = {}
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
            parts.append(self._fetched(number)[offset : offset + end - at])
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
        if len(index) and not (index.min() >= 0 and index.max() < self.count):
            bad = int(index[(index < 0) | (index >= self.count)][0])
            raise UnknownReference(f"no {self._name} {bad}; there are {self.count}")
        # One gather for each piece that is touched: sort by piece, the tail being piece -1.
        piece = np.where(index < self._tail_start, index // self._piece, -1)
        order = np.argsort(piece, kind="stable")
        numbers, starts = np.unique(piece[order], return_index=True)
        offsets = np.where(piece < 0, index - self._tail_start, index % self._piece)[order]
        gathered = np.empty((len(index), *self._tail.shape[1:]), self._tail.dtype)
        ends = [*starts[1:].tolist(), len(index)] if len(index) else []
        for number, begin, end in zip(numbers.tolist(), starts.tolist(), ends, strict=True):
            source = self._tail if number < 0 else self._fetched(number)
            # "clip" only because it lets take write in place; all offsets are inside.
            np.take(source, offsets[begin:end], axis=0, out=gathered[begin:end], mode="clip")
        rows = np.empty_like(gathered)
        rows[order] = gathered
        rows.setflags(write=False)
        return rows

    def _fetched(self, number: int) -> Array:
        """A piece, remembered: the pieces of a column never change."""
        piece = self._pieces.get(number)
        if piece is None:
            if len(self._pieces) >= REMEMBERED:
                self._pieces.clear()
            piece = self._pieces[number] = self._fetch(number)
        return piece
