"""Where blocks go when dead ones are left out: the arithmetic of a repack.

Blocks before `first`, a segment's boundary, stay, dead ones among them too; of those behind it the live ones move up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from megacontext.core.ranges import BlockRange, joined
from megacontext.core.timeline import Timeline
from megacontext.storage.dead import DeadRanges
from megacontext.storage.documents import DocumentRecord
from megacontext.storage.labels import Labels
from megacontext.storage.snapshot import Snapshot
from megacontext.storage.tensors import I64


def region(timeline: Timeline, segment_blocks: int, *, everything: bool = False) -> int | None:
    """The block from which a repack pays: the first segment from which on more than half of all blocks are dead, without
    whole live segments at its start. With `everything` it is the first segment with a dead block. None: there is none."""
    packing = Packing(0, timeline.blocks, timeline.dead)
    edges = np.append(np.arange(0, timeline.blocks, segment_blocks, dtype=np.int64), timeline.blocks)
    died = np.diff(edges - packing.places(edges))
    wanted = died > 0
    if not everything:
        rest = edges[-1] - edges[:-1]
        wanted &= np.maximum.accumulate(2 * died[::-1].cumsum()[::-1] > rest)
    found = np.flatnonzero(wanted)
    return int(edges[found[0]]) if len(found) else None


class Packing:
    """The way of every block of a timeline of `blocks` blocks when the `dead` ones from `first` on are left out."""

    def __init__(self, first: int, blocks: int, dead: Iterable[BlockRange]) -> None:
        dead = tuple(dead)
        pairs = np.array(joined((max(start, first), stop) for start, stop in dead if stop > first), np.int64).reshape(-1, 2)
        self.first = first
        self.kept_dead = DeadRanges((start, min(stop, first)) for start, stop in dead if start < first)
        self._starts, self._stops = pairs[:, 0], pairs[:, 1]
        self._gone = np.concatenate(([0], (self._stops - self._starts).cumsum()))
        self.blocks = self.place(blocks)

    def places(self, blocks: I64) -> I64:
        """The new indices of the blocks at int64 [k] indices; of a dead one that of the next live block."""
        before = np.searchsorted(self._starts, blocks, side="left")
        inside = np.maximum(np.append(0, self._stops)[before] - blocks, 0)
        places: I64 = blocks - self._gone[before] + inside
        return places

    def place(self, block: int) -> int:
        """The new index of one block."""
        return int(self.places(np.array([block], np.int64))[0])

    def record(self, record: DocumentRecord, before: Snapshot) -> DocumentRecord:
        """The record of a document where it is now. One that goes has no blocks any more, but those before `first`."""
        start, stop = record.span
        new_start = self.place(start)
        blocks = self.place(stop) - new_start
        if blocks == record.blocks:
            return record if new_start == start else replace(record, start_block=new_start)
        moved = before.timeline().present(max(start, self.first), max(stop, self.first))
        left = np.concatenate((np.arange(start, max(start, min(stop, self.first)), dtype=np.int64), moved))
        tokens = int(before.fill_at(left).sum(dtype=np.int64))
        return replace(record, start_block=new_start, blocks=blocks, tokens=tokens, original="")

    def labels(self, labels: Labels) -> Labels:
        """Labels of blocks where these are now."""
        ranges = {}
        for name, spans in labels.ranges.items():
            moved = self.places(np.array(spans, np.int64).reshape(-1, 2)).tolist()
            if held := joined((start, stop) for start, stop in moved if start < stop):
                ranges[name] = held
        return replace(labels, ranges=ranges)
