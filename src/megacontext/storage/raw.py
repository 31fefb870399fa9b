"""The raw tokens of a snapshot, some of whose blocks may be pruned: rows of those are not given out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from megacontext.core.ranges import BlockRange, BlockRanges
from megacontext.errors import DetailPruned
from megacontext.storage.column import Column
from megacontext.storage.merkle import MerkleList, get, iterate
from megacontext.storage.objects import ObjectReader
from megacontext.storage.stubs import RESTORE
from megacontext.storage.tensors import I64, Array


def pruned_blocks(
    reader: ObjectReader, segments: MerkleList, size: int, tail: tuple[BlockRange, ...]
) -> tuple[BlockRange, ...]:
    """The blocks of a timeline whose raw tokens are archived now: those in `segments` of `size` blocks, and these of its
    tail."""
    if reader.stubs is None:
        return ()
    sealed = reader.stubs.ranges(segments.root, lambda: iterate(reader, segments), size, reader.there)
    return (*sealed, *tail)


def fetcher(reader: ObjectReader, items: MerkleList, name: str, known: BlockRanges, size: int) -> Callable[[int], Array]:
    """Fetches the array `name` of the segment with a number. Blocks that were pruned since they were `known` raise
    DetailPruned, where it is their ids."""

    def fetch(number: int) -> Array:
        arrays, pruned = reader.blocks(get(reader, items, number))
        if pruned and name == "ids" and not reader.whole:
            spans = np.array(pruned, np.int64) + number * size
            if not known.cover(spans[:, 0], spans[:, 1]).all():
                raise DetailPruned("the memory was pruned while it was being read: open it again")
        return arrays[name]

    return fetch


class RawColumn(Column):
    """The ids of all blocks; of those that are `pruned` none are given out."""

    def __init__(self, fetch: Callable[[int], Array], piece: int, tail_start: int, tail: Array, pruned: BlockRanges) -> None:
        super().__init__("blocks", fetch, piece, tail_start, tail)
        self._pruned = pruned

    def range(self, start: int, stop: int) -> Array:
        """See `Column.range`; raises DetailPruned for pruned blocks."""
        if start < stop:
            self._check(np.array([start], np.int64), np.array([stop], np.int64))
        return super().range(start, stop)

    def at(self, index: I64) -> Array:
        """See `Column.at`; raises DetailPruned for pruned blocks."""
        index = np.asarray(index, np.int64)
        self._check(index, index + 1)
        return super().at(index)

    def _check(self, start: I64, stop: I64) -> None:
        held = self._pruned.touch(start, stop)
        if held.any():
            raise DetailPruned(f"block {int(start[held][0])} cannot be read: {RESTORE}")
