"""The working context: an immutable tiling of what a reader may see of the live timeline.

Entries are two parallel arrays, ``lod int8[n]`` and ``index int64[n]``, in timeline order. The
unfinished block is implicit: raw, after the last entry, at the cost of its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from megacontext.core import invariants
from megacontext.core.node import (
    BLOCK,
    FloatArray,
    IntArray,
    LodArray,
    first_blocks_of,
    node_blocks,
    span_blocks_of,
)
from megacontext.core.timeline import Timeline
from megacontext.errors import BudgetError, InvalidInput


@dataclass(frozen=True, eq=False)
class WorkingContext:
    """A window over a timeline. Compared and hashed by value; its arrays are read-only copies.

    Args:
        timeline: what there is to tile.
        lod: int8[n], 0 for a raw block, k >= 1 for the gist of an LOD k node.
        index: int64[n], the block (lod 0) or node index.
        budget: largest sum of entry costs, open tokens included.
        recent: this many of the newest tokens stay raw (whole blocks that overlap them).
        vectors: vectors per gist, 1 to 32: the cost of a gist.

    Raises:
        InvalidInput: for sizes that make no sense.
        InvariantError: if the entries break the budget, tiling, alignment or tail; names the entry.
    """

    timeline: Timeline
    lod: LodArray
    index: IntArray
    budget: int
    recent: int
    vectors: int = 1

    def __post_init__(self) -> None:
        _check_sizes(self.budget, self.recent, self.vectors)
        for name, dtype in (("lod", np.int8), ("index", np.int64)):
            array = np.array(getattr(self, name), dtype=dtype)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if self.lod.ndim != 1 or self.lod.shape != self.index.shape:
            raise InvalidInput(f"lod {self.lod.shape} and index {self.index.shape} must be one length")
        invariants.check_window(self)

    @classmethod
    def trusted(
        cls,
        timeline: Timeline,
        lod: LodArray,
        index: IntArray,
        budget: int,
        recent: int,
        vectors: int = 1,
        *,
        cost: int | None = None,
    ) -> WorkingContext:
        """A window whose invariants the caller guarantees: takes the arrays over, checks nothing.

        For the edit algebra, where checking every step would cost more than the step. ``cost`` is
        the sum of entry costs when the caller knows it.
        """
        window = object.__new__(cls)
        lod.setflags(write=False)
        index.setflags(write=False)
        window.__dict__.update(timeline=timeline, lod=lod, index=index, budget=budget, recent=recent, vectors=vectors)
        if cost is not None:
            window.__dict__["cost"] = cost
        return window

    @classmethod
    def coarsest(cls, timeline: Timeline, budget: int, recent: int, vectors: int = 1) -> WorkingContext:
        """The cheapest window there is: the tail raw, the largest complete nodes before it that the reader may see.

        Raises:
            BudgetError: if even that does not fit; the message names the minimum.
        """
        _check_sizes(budget, recent, vectors)
        tail_start = timeline.tail_start(recent)
        lod, index = timeline.coarsest(tail_start)
        tail = timeline.present(tail_start, timeline.blocks)
        lod = np.concatenate([lod, timeline.finest(tail)])
        index = np.concatenate([index, tail])
        window = cls.trusted(timeline, lod, index, budget, recent, vectors)
        if window.cost > budget:
            gists = int(np.count_nonzero(window.lod)) * vectors
            raise BudgetError(
                f"a budget of {budget} cannot hold the coarsest window over"
                f" {timeline.tokens:,} tokens: it needs {window.cost} ({gists} for gists,"
                f" {window.cost - gists} for the raw tail); raise the budget to at least"
                f" {window.cost} or lower recent={recent}"
            )
        return window

    def __len__(self) -> int:
        """Number of entries; the unfinished block is none."""
        return int(self.lod.size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WorkingContext) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"WorkingContext({len(self)} entries, cost {self.cost} of {self.budget}, {self.timeline.tokens} tokens)"

    @property
    def free(self) -> int:
        """Budget that is not used yet, in cost units (tokens)."""
        return self.budget - self.cost

    @property
    def tail_start(self) -> int:
        """The first block of the protected tail; ``timeline.blocks`` if it has no whole block."""
        return self.timeline.tail_start(self.recent)

    @cached_property
    def cost(self) -> int:
        """Sum of entry costs plus the open tokens."""
        gists = int(np.count_nonzero(self.lod))
        return gists * self.vectors + (len(self) - gists) * BLOCK + self.timeline.open_tokens

    @cached_property
    def costs(self) -> IntArray:
        """Cost of each entry, int64[n]: 32 for a raw block, ``vectors`` for a gist."""
        return _protected(np.where(self.lod == 0, np.int64(BLOCK), np.int64(self.vectors)))

    @cached_property
    def expand_costs(self) -> IntArray:
        """What expanding each entry would add to the cost, int64[n]; 0 for raw blocks."""
        added = np.where(self.lod == 1, np.int64(BLOCK - self.vectors), np.int64(0))
        deep = np.flatnonzero(self.lod > 1)
        sizes = self.timeline.family_sizes(self.lod[deep], self.index[deep])
        added[deep] = (sizes - 1) * self.vectors
        return _protected(added)

    @cached_property
    def span_blocks(self) -> IntArray:
        """Blocks that each entry covers, int64[n], dead ones included (an entry holds no denied ones)."""
        return _protected(span_blocks_of(self.lod))

    @cached_property
    def first_blocks(self) -> IntArray:
        """First block of each entry, int64[n], strictly increasing."""
        return _protected(first_blocks_of(self.lod, self.index))

    @property
    def starts(self) -> IntArray:
        """First token position of each entry, int64[n]."""
        return self.first_blocks * BLOCK

    @property
    def stops(self) -> IntArray:
        """Token position after each entry, int64[n]."""
        return (self.first_blocks + self.span_blocks) * BLOCK

    @property
    def centres(self) -> FloatArray:
        """Mean token position of each entry, float64[n], strictly increasing."""
        return (self.starts + self.stops - 1) / 2.0

    def find(self, lod: int, index: int) -> int | None:
        """The position of an entry, or None if the window does not hold it."""
        at = int(np.searchsorted(self.first_blocks, node_blocks(lod, index)[0]))
        found = at < len(self) and self.lod[at] == lod and self.index[at] == index
        return at if found else None

    def covering(self, blocks: IntArray) -> IntArray:
        """The position of the entry that covers each block, int64[k]; -1 where none does.

        A dead block below a gist with live siblings is covered; one in a skipped gap is not.
        """
        blocks = np.asarray(blocks, np.int64)
        at = np.searchsorted(self.first_blocks, blocks, side="right") - 1
        if not len(self):
            return np.full(blocks.shape, -1, np.int64)
        inside = (at >= 0) & (blocks < self.first_blocks[at] + self.span_blocks[at])
        return np.where(inside, at, np.int64(-1))

    def advance(self, timeline: Timeline) -> WorkingContext:
        """The window over a later timeline: newly completed blocks enter raw at the end.

        Entries whose blocks all died meanwhile are dropped; nothing else changes.

        Raises:
            InvalidInput: if the timeline is not a later state of this one.
            BudgetError: if the new tokens do not fit; call ``make_room`` first.
        """
        if not timeline.grows_from(self.timeline):
            raise InvalidInput("advance needs a later timeline of the same reader: longer, with nothing back from the dead")
        lod, index = self.lod, self.index
        if timeline.dead != self.timeline.dead:
            alive = ~timeline.dead_mask(lod, index)
            lod, index = lod[alive], index[alive]
        if timeline.blocks > self.timeline.blocks:
            new = timeline.present(self.timeline.blocks, timeline.blocks)
            lod = np.concatenate([lod, timeline.finest(new)])
            index = np.concatenate([index, new])
        window = self.trusted(timeline, lod, index, self.budget, self.recent, self.vectors)
        if window.cost > self.budget:
            raise BudgetError(
                f"advancing from {self.timeline.tokens:,} to {timeline.tokens:,} tokens needs a"
                f" cost of {window.cost}, and the budget is {self.budget}: call make_room for"
                f" {window.cost - self.cost} tokens first"
            )
        return window

    def splice(self, position: int, count: int, lod: int, index: IntArray) -> WorkingContext:
        """Entries ``[position, position + count)`` of one lod replaced by ``(lod, index[k])``.

        Checks nothing; the edit algebra guarantees that both sides cover the same live blocks.
        """
        stop = position + count
        removed = count * (self.vectors if self.lod[position] else BLOCK)
        added = index.size * (self.vectors if lod else BLOCK)
        new_lod = np.full(index.size, lod, np.int8)
        window = self.trusted(
            self.timeline,
            np.concatenate([self.lod[:position], new_lod, self.lod[stop:]]),
            np.concatenate([self.index[:position], index, self.index[stop:]]),
            self.budget,
            self.recent,
            self.vectors,
            cost=self.cost - removed + added,
        )
        # The next edit looks its entry up by block; carrying these over halves the time of a step.
        first, new_first = self.first_blocks, first_blocks_of(new_lod, index)
        first = np.concatenate([first[:position], new_first, first[stop:]])
        window.__dict__["first_blocks"] = _protected(first)
        return window

    @cached_property
    def _key(self) -> tuple[object, ...]:
        return (
            self.timeline,
            self.budget,
            self.recent,
            self.vectors,
            self.lod.tobytes(),
            self.index.tobytes(),
        )


def _protected(array: IntArray) -> IntArray:
    array.setflags(write=False)
    return array


def _check_sizes(budget: int, recent: int, vectors: int) -> None:
    if budget < 1 or recent < 0:
        raise InvalidInput(f"a window needs budget >= 1 and recent >= 0, not {budget} and {recent}")
    if not 1 <= vectors <= BLOCK:
        raise InvalidInput(f"a gist has 1 to {BLOCK} vectors (more would not compress), not {vectors}")
