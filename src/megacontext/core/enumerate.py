"""Exhaustive iterators over small spans: the ground that clever code is tested against."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from megacontext.core.node import BLOCK, LodArray, Node, first_blocks_of
from megacontext.core.ranges import BlockRange
from megacontext.core.timeline import Timeline
from megacontext.core.working_context import WorkingContext
from megacontext.errors import BudgetError


def legal_windows(timeline: Timeline, budget: int, recent: int, vectors: int = 1) -> Iterator[WorkingContext]:
    """All windows within the budget over a timeline, each once; none if the coarsest is too dear.

    Branches that cannot fit any more are cut, so a small budget keeps deep trees tractable; without
    that limit the number is doubly exponential in the depth.
    """
    try:
        coarsest = WorkingContext.coarsest(timeline, budget, recent, vectors)
    except BudgetError:
        return
    fixed = coarsest.index[coarsest.lod == 0]  # the tail; open tokens are in the coarsest's cost
    gist = coarsest.lod > 0
    roots = list(zip(coarsest.lod[gist].tolist(), coarsest.index[gist].tolist(), strict=True))
    for entries in _tilings(roots[::-1], coarsest.free, timeline, vectors, []):
        lod = np.array([lod for lod, _ in entries] + [0] * fixed.size, np.int8)
        index = np.array([index for _, index in entries] + fixed.tolist(), np.int64)
        order = np.argsort(first_blocks_of(lod, index))
        yield WorkingContext.trusted(timeline, lod[order], index[order], budget, recent, vectors)


def substitution_patterns(span: BlockRange) -> Iterator[LodArray]:
    """All gist/raw patterns of blocks ``[start, stop)``: int8[stop - start], 0 raw, 1 LOD1 gist.

    From all raw to all gists, the last block changing fastest; 2**n patterns.
    """
    for pattern in product((0, 1), repeat=span[1] - span[0]):
        yield np.array(pattern, np.int8)


def _tilings(pending: list[Node], free: int, timeline: Timeline, vectors: int, done: list[Node]) -> Iterator[list[Node]]:
    """Tilings of the pending nodes (a stack, next one last), each paid for as a gist already."""
    if not pending:
        yield done
        return
    *rest, (lod, index) = pending
    yield from _tilings(rest, free, timeline, vectors, [*done, (lod, index)])
    if lod == 1:
        if BLOCK - vectors <= free and not timeline.is_pruned(index):
            raw = [*done, (0, index)]
            yield from _tilings(rest, free - BLOCK + vectors, timeline, vectors, raw)
        return
    live = timeline.live_children(lod, index).tolist()
    growth = (len(live) - 1) * vectors
    if growth <= free:
        opened = rest + [(lod - 1, child) for child in reversed(live)]
        yield from _tilings(opened, free - growth, timeline, vectors, done)
