"""The timeline: what exists so far, which of it is dead or denied, and which nodes are complete.

*Dead* blocks were superseded, removed or erased; gists above them are re-made from live children, so a partly dead
node may be shown. *Denied* blocks are live, but not for this reader: no gist whose span holds one may be shown, since
it was made from it too. Blocks that are either are *absent*: a window has no entry for them. Of *pruned* blocks only
gists are at hand, so a window never shows them raw.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from megacontext.core.node import (
    BLOCK,
    MAX_LOD,
    BoolArray,
    IntArray,
    LodArray,
    children,
    coarsest_nodes,
    first_blocks_of,
    node_blocks,
    span_blocks_of,
    top_lod,
)
from megacontext.core.ranges import BlockRange, BlockRanges, joined
from megacontext.errors import InvalidInput

_CHILDREN = np.arange(BLOCK, dtype=np.int64)


@dataclass(frozen=True)
class Timeline:
    """The extent of a memory, as seen by a window. Immutable and hashable.

    Args:
        blocks: complete blocks.
        open_tokens: tokens in the unfinished block after them, 0 to 31.
        dead: block ranges ``(start, stop)`` that were superseded, removed or erased; sorted and
            disjoint.
        denied: block ranges that the reader may not see, in the same form; they may overlap dead ones.
        pruned: block ranges whose raw tokens are archived, in the same form: only gists show them.

    Raises:
        InvalidInput: for negative counts, 32 or more open tokens, or ranges that are unsorted,
            overlapping, empty or past the last complete block.
    """

    blocks: int
    open_tokens: int = 0
    dead: tuple[BlockRange, ...] = ()
    denied: tuple[BlockRange, ...] = ()
    pruned: tuple[BlockRange, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.blocks <= BLOCK ** (MAX_LOD - 1):
            raise InvalidInput(f"a timeline has 0 to 32**{MAX_LOD - 1} blocks; {self.blocks} were given")
        if not 0 <= self.open_tokens < BLOCK:
            raise InvalidInput(f"an unfinished block has 0 to {BLOCK - 1} tokens; {self.open_tokens} were given")
        for name in ("dead", "denied", "pruned"):
            object.__setattr__(self, name, _checked(name, getattr(self, name), self.blocks))

    @property
    def tokens(self) -> int:
        """The cursor: tokens ingested so far, filling and dead ones included."""
        return self.blocks * BLOCK + self.open_tokens

    @property
    def live_blocks(self) -> int:
        """Complete blocks that are not dead."""
        return self.blocks - self._dead.total

    @property
    def levels(self) -> int:
        """The highest lod that has a complete node; 0 before the first complete block."""
        return top_lod(self.blocks)

    def tail_start(self, recent: int) -> int:
        """The first block that overlaps the last ``recent`` tokens; ``blocks`` if none does."""
        return min(max(self.tokens - recent, 0) // BLOCK, self.blocks)

    def complete(self, lod: int, index: int) -> bool:
        """Whether all blocks of a node exist (dead or not)."""
        return index >= 0 and node_blocks(lod, index)[1] <= self.blocks

    def dead_mask(self, lod: LodArray, index: IntArray) -> BoolArray:
        """Whether every block of each node or entry is dead; bool of the arrays' shape."""
        return self._dead.cover(*_spans(lod, index))

    def absent_mask(self, lod: LodArray, index: IntArray) -> BoolArray:
        """Whether every block of each node or entry is dead or denied, so that no window has an entry for it."""
        return self._absent.cover(*_spans(lod, index))

    def denied_mask(self, lod: LodArray, index: IntArray) -> BoolArray:
        """Whether each node or entry holds a denied block, dead or not, so that this reader must not see it."""
        return self._denied.touch(*_spans(lod, index))

    def pruned_mask(self, lod: LodArray, index: IntArray) -> BoolArray:
        """Whether each entry is a block, or the gist of one, whose raw tokens are archived."""
        return self._pruned.cover(*_spans(lod, index)) & (lod <= 1)

    def finest(self, blocks: IntArray) -> LodArray:
        """The finest entries there are for blocks: int8 of their shape, 0, or 1 for those that are pruned."""
        return self._pruned.cover(blocks, blocks + 1).astype(np.int8)

    def is_pruned(self, block: int) -> bool:
        """Whether the raw tokens of a block are archived."""
        return _covers(self.pruned, block, block + 1)

    def is_dead(self, lod: int, index: int) -> bool:
        """Whether every block of a node or entry is dead."""
        return _covers(self.dead, *node_blocks(lod, index))

    def holds_denied(self, lod: int, index: int) -> bool:
        """Whether a node or entry holds a denied block, dead or not."""
        start, stop = node_blocks(lod, index)
        at = bisect_right(self.denied, start, key=lambda span: span[1])
        return at < len(self.denied) and self.denied[at][0] < stop

    def absent_spans(self, start: IntArray, stop: IntArray) -> BoolArray:
        """Whether every block of each block span ``[start, stop)`` is dead or denied."""
        return self._absent.cover(start, stop)

    def present(self, start: int, stop: int) -> IntArray:
        """The blocks of ``[start, stop)`` that are neither dead nor denied, int64[k]."""
        block = np.arange(start, stop, dtype=np.int64)
        return block[~self._absent.cover(block, block + 1)]

    def next_present(self, blocks: IntArray) -> IntArray:
        """For each block int64[k] itself, or the first one behind it that is neither dead nor denied (maybe ``blocks``)."""
        return self._absent.stop_of(blocks)

    def newest(self, count: int) -> IntArray:
        """The last ``count`` blocks that a window may show raw (fewer where there are fewer), int64[k], ascending."""
        start, found = self.blocks, np.empty(0, np.int64)
        while start and len(found) < count:
            start = max(0, start - 2 * (self.blocks - start) - count)
            found = self.present(start, self.blocks)
            found = found[self.finest(found) == 0]
        return found[len(found) - min(count, len(found)) :]

    def coarsest(self, stop: int) -> tuple[LodArray, IntArray]:
        """The fewest nodes that tile the present blocks of ``[0, stop)``, in order.

        Where a node holds denied blocks, its children take its place, level by level, until none does.
        """
        lod, index = self._without_absent(*coarsest_nodes(stop))
        if not self.denied:
            return lod, index
        done: list[tuple[LodArray, IntArray]] = []
        while lod.size:
            held = self.denied_mask(lod, index)  # lod 1 never: a block that is denied is absent
            done.append((lod[~held], index[~held]))
            below = (index[held][:, None] * BLOCK + _CHILDREN).ravel()
            lod, index = self._without_absent(np.repeat(lod[held] - 1, BLOCK).astype(np.int8), below)
        lod, index = np.concatenate([lod, *(part for part, _ in done)]), np.concatenate([index, *(part for _, part in done)])
        order = np.argsort(first_blocks_of(lod, index), kind="stable")
        return lod[order], index[order]

    def kills(self, start: int, stop: int) -> bool:
        """Whether blocks ``[start, stop)``, of which there are some, are all dead."""
        at = bisect_right(self.dead, start, key=lambda span: span[0]) - 1
        return start < stop and at >= 0 and stop <= self.dead[at][1]

    def live_children(self, lod: int, index: int) -> IntArray:
        """Indexes of a node's children that are not wholly absent, int64[k]; for lod 1 the block."""
        child_lod, span = children(lod, index)
        index_array = np.arange(span.start, span.stop, dtype=np.int64)
        if not self._any_absent:
            return index_array
        lods = np.full(index_array.size, child_lod, np.int8)
        return index_array[~self.absent_mask(lods, index_array)]

    def family_size(self, lod: int, index: int) -> int:
        """How many live children a node (lod >= 1) has."""
        if not self._any_absent:
            return 1 if lod == 1 else BLOCK
        return int(self.live_children(lod, index).size)

    def family_sizes(self, lod: LodArray, index: IntArray) -> IntArray:
        """How many live children each node (lod >= 1) has, int64[n]."""
        if not self._any_absent:
            return np.where(lod == 1, np.int64(1), np.int64(BLOCK))
        child_lod = np.maximum(lod - 1, 1).astype(np.int8)  # (1, i) and (0, i) are absent together
        child = np.where((lod == 1)[:, None], index[:, None], index[:, None] * BLOCK + _CHILDREN)
        alive = ~self.absent_mask(np.broadcast_to(child_lod[:, None], child.shape), child)
        return np.where(lod == 1, alive[:, 0], alive.sum(axis=1)).astype(np.int64)

    def extend(self, blocks: int, open_tokens: int = 0) -> Timeline:
        """The timeline grown to ``blocks`` and ``open_tokens`` (totals, not increments).

        Raises:
            InvalidInput: if that is shorter than this timeline.
        """
        if blocks * BLOCK + open_tokens < self.tokens:
            raise InvalidInput(
                f"a timeline only grows: it has {self.tokens} tokens and cannot become {blocks * BLOCK + open_tokens}"
            )
        later = Timeline(blocks, open_tokens)
        # Ranges stay valid when a timeline grows; every decoded token comes by here.
        later.__dict__.update({name: value for name, value in self.__dict__.items() if name in _RANGES})
        return later

    def append(self, tokens: int) -> Timeline:
        """The timeline after ``tokens`` more tokens."""
        return self.extend(*divmod(self.tokens + tokens, BLOCK))

    def truncate(self, tokens: int) -> Timeline:
        """The timeline as it was at ``tokens`` tokens, with today's dead and denied ranges."""
        blocks, open_tokens = divmod(min(tokens, self.tokens), BLOCK)
        spans = (self.dead, self.denied, self.pruned)
        return Timeline(blocks, open_tokens, *(tuple((a, min(b, blocks)) for a, b in each if a < blocks) for each in spans))

    def kill(self, start: int, stop: int) -> Timeline:
        """The timeline with blocks ``[start, stop)`` dead as well; ranges may overlap dead ones."""
        return replace(self, dead=joined((*self.dead, (start, stop))))

    def deny(self, spans: Iterable[BlockRange]) -> Timeline:
        """The timeline for a reader that may not see the blocks of ``spans`` either; they may overlap and touch."""
        return replace(self, denied=joined((*self.denied, *spans)))

    def prune(self, spans: Iterable[BlockRange]) -> Timeline:
        """The timeline with the raw tokens of the blocks of ``spans`` archived as well; they may overlap and touch."""
        return replace(self, pruned=joined((*self.pruned, *spans)))

    def grows_from(self, earlier: Timeline) -> bool:
        """Whether this is ``earlier`` after appends and deaths, for the same reader: nothing is lost or revived."""
        if self.tokens < earlier.tokens or self.denied != earlier.denied:
            return False
        return self.dead == earlier.dead or bool(np.all(self._dead.cover(earlier._dead.starts, earlier._dead.stops)))

    def _without_absent(self, lod: LodArray, index: IntArray) -> tuple[LodArray, IntArray]:
        there = ~self.absent_mask(lod, index)
        return lod[there], index[there]

    @property
    def _any_absent(self) -> bool:
        return bool(self.dead or self.denied)

    @cached_property
    def _dead(self) -> BlockRanges:
        return BlockRanges.of(self.dead)

    @cached_property
    def _denied(self) -> BlockRanges:
        return BlockRanges.of(self.denied)

    @cached_property
    def _pruned(self) -> BlockRanges:
        return BlockRanges.of(self.pruned)

    @cached_property
    def _absent(self) -> BlockRanges:
        return BlockRanges.of(joined((*self.dead, *self.denied))) if self.denied else self._dead


_RANGES = ("dead", "denied", "pruned", "_dead", "_denied", "_pruned", "_absent")


def _spans(lod: LodArray, index: IntArray) -> tuple[IntArray, IntArray]:
    start = first_blocks_of(lod, index)
    return start, start + span_blocks_of(lod)


def _covers(ranges: tuple[BlockRange, ...], start: int, stop: int) -> bool:
    at = bisect_right(ranges, start, key=lambda span: span[0]) - 1
    return at >= 0 and stop <= ranges[at][1]


def _checked(name: str, ranges: tuple[BlockRange, ...], blocks: int) -> tuple[BlockRange, ...]:
    """Ranges checked, with touching ones joined, so that equal timelines compare equal."""
    last = 0
    for start, stop in ranges:
        if not 0 <= start < stop <= blocks:
            raise InvalidInput(f"{name} range ({start}, {stop}) is empty or outside of the {blocks} complete blocks")
        if start < last:
            raise InvalidInput(f"{name} ranges must be sorted and disjoint: ({start}, {stop}) starts before {last}")
        last = stop
    return joined(ranges)
