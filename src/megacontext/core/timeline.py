"""The timeline: what exists so far, which of it is dead, and which nodes are complete."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from megacontext.core.node import (
    BLOCK,
    MAX_LOD,
    BoolArray,
    IntArray,
    LodArray,
    children,
    first_blocks_of,
    node_blocks,
    span_blocks_of,
    top_lod,
)
from megacontext.errors import InvalidInput

BlockRange = tuple[int, int]

_CHILDREN = np.arange(BLOCK, dtype=np.int64)


@dataclass(frozen=True)
class Timeline:
    """The extent of a memory, as seen by a window. Immutable and hashable.

    Args:
        blocks: complete blocks.
        open_tokens: tokens in the unfinished block after them, 0 to 31.
        dead: block ranges ``(start, stop)`` that were superseded, removed or erased; sorted and
            disjoint.

    Raises:
        InvalidInput: for negative counts, 32 or more open tokens, or dead ranges that are unsorted,
            overlapping, empty or past the last complete block.
    """

    blocks: int
    open_tokens: int = 0
    dead: tuple[BlockRange, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.blocks <= BLOCK ** (MAX_LOD - 1):
            raise InvalidInput(f"a timeline has 0 to 32**{MAX_LOD - 1} blocks; {self.blocks} were given")
        if not 0 <= self.open_tokens < BLOCK:
            raise InvalidInput(f"an unfinished block has 0 to {BLOCK - 1} tokens; {self.open_tokens} were given")
        object.__setattr__(self, "dead", _joined(self.dead, self.blocks))

    @property
    def tokens(self) -> int:
        """The cursor: tokens ingested so far, filling and dead ones included."""
        return self.blocks * BLOCK + self.open_tokens

    @property
    def live_blocks(self) -> int:
        """Complete blocks that are not dead."""
        return self.blocks - int(self._dead_total[-1])

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

    def is_dead(self, lod: int, index: int) -> bool:
        """Whether every block of a node or entry is dead."""
        if not self.dead:
            return False
        start, stop = node_blocks(lod, index)
        # Ranges are joined, so a wholly dead span lies inside exactly one of them.
        at = bisect_right(self.dead, start, key=lambda span: span[0]) - 1
        return at >= 0 and stop <= self.dead[at][1]

    def dead_mask(self, lod: LodArray, index: IntArray) -> BoolArray:
        """``is_dead`` for arrays of one shape; bool of that shape."""
        start = first_blocks_of(lod, index)
        if not self.dead:
            return np.zeros(start.shape, np.bool_)
        at = np.searchsorted(self._dead_starts, start, side="right") - 1
        covered: BoolArray = (at >= 0) & (start + span_blocks_of(lod) <= self._dead_stops[at])
        return covered

    def live_children(self, lod: int, index: int) -> IntArray:
        """Indexes of a node's children that are not wholly dead, int64[k]; for lod 1 the block."""
        child_lod, span = children(lod, index)
        index_array = np.arange(span.start, span.stop, dtype=np.int64)
        if not self.dead:
            return index_array
        lods = np.full(index_array.size, child_lod, np.int8)
        return index_array[~self.dead_mask(lods, index_array)]

    def family_size(self, lod: int, index: int) -> int:
        """How many live children a node (lod >= 1) has."""
        if not self.dead:
            return 1 if lod == 1 else BLOCK
        return int(self.live_children(lod, index).size)

    def family_sizes(self, lod: LodArray, index: IntArray) -> IntArray:
        """How many live children each node (lod >= 1) has, int64[n]."""
        if not self.dead:
            return np.where(lod == 1, np.int64(1), np.int64(BLOCK))
        child_lod = np.maximum(lod - 1, 1).astype(np.int8)  # (1, i) and (0, i) are dead together
        child = np.where((lod == 1)[:, None], index[:, None], index[:, None] * BLOCK + _CHILDREN)
        alive = ~self.dead_mask(np.broadcast_to(child_lod[:, None], child.shape), child)
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
        # Dead ranges stay valid when a timeline grows; every decoded token comes by here.
        carried = {name: value for name, value in self.__dict__.items() if "dead" in name}
        later.__dict__.update(carried)
        return later

    def append(self, tokens: int) -> Timeline:
        """The timeline after ``tokens`` more tokens."""
        return self.extend(*divmod(self.tokens + tokens, BLOCK))

    def truncate(self, tokens: int) -> Timeline:
        """The timeline as it was at ``tokens`` tokens, with today's dead ranges."""
        blocks, open_tokens = divmod(min(tokens, self.tokens), BLOCK)
        dead = tuple((a, min(b, blocks)) for a, b in self.dead if a < blocks)
        return Timeline(blocks, open_tokens, dead)

    def kill(self, start: int, stop: int) -> Timeline:
        """The timeline with blocks ``[start, stop)`` dead as well; ranges may overlap dead ones."""
        spans: list[BlockRange] = []
        for a, b in sorted((*self.dead, (start, stop))):
            if spans and a <= spans[-1][1]:
                spans[-1] = (spans[-1][0], max(spans[-1][1], b))
            else:
                spans.append((a, b))
        return Timeline(self.blocks, self.open_tokens, tuple(spans))

    def grows_from(self, earlier: Timeline) -> bool:
        """Whether this is ``earlier`` after appends and deaths: nothing is lost or revived."""
        if self.tokens < earlier.tokens:
            return False
        if self.dead == earlier.dead:
            return True
        spans = zip(*earlier.dead, strict=True) if earlier.dead else ((), ())
        starts, stops = (np.array(side, np.int64) for side in spans)
        at = np.searchsorted(self._dead_starts, starts, side="right") - 1
        return bool(np.all(at >= 0) and np.all(stops <= self._dead_stops[at])) if starts.size else True

    @cached_property
    def _dead_starts(self) -> IntArray:
        return np.array([start for start, _ in self.dead], np.int64)

    @cached_property
    def _dead_stops(self) -> IntArray:
        # The sentinel lets ``stops[-1]`` be read when no range starts before a span (it is masked).
        return np.array([stop for _, stop in self.dead] or [0], np.int64)

    @cached_property
    def _dead_total(self) -> IntArray:
        return np.cumsum([0, *(stop - start for start, stop in self.dead)], dtype=np.int64)


def _joined(dead: tuple[BlockRange, ...], blocks: int) -> tuple[BlockRange, ...]:
    """Dead ranges checked, with touching ones joined, so that equal timelines compare equal."""
    joined: list[BlockRange] = []
    for start, stop in dead:
        if not 0 <= start < stop <= blocks:
            raise InvalidInput(f"dead range ({start}, {stop}) is empty or outside of the {blocks} complete blocks")
        if joined and start < joined[-1][1]:
            raise InvalidInput(f"dead ranges must be sorted and disjoint: ({start}, {stop}) follows {joined[-1]}")
        if joined and start == joined[-1][1]:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)
