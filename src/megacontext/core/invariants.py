"""The nine invariants of the design, one function each.

Each returns None or raises ``InvariantError`` naming the entry; none repairs anything. The first
four (and the order of positions) can be read off one window: ``check_window`` runs them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from megacontext.core.node import (
    BLOCK,
    MAX_LOD,
    BoolArray,
    IntArray,
    LodArray,
    first_blocks_of,
    span_blocks_of,
    top_lod,
)
from megacontext.errors import InvariantError

if TYPE_CHECKING:  # the window checks itself on construction, so it imports this module
    from megacontext.core.ranges import BlockRange
    from megacontext.core.timeline import Timeline
    from megacontext.core.working_context import WorkingContext


def check_window(window: WorkingContext) -> None:
    """Everything that one window shows: alignment, tiling, tail, budget, order of positions, nothing denied."""
    alignment(window)
    allowed(window)
    tiling(window)
    tail(window)
    budget(window)
    positions(window)


def budget(window: WorkingContext) -> None:
    """1. The sum of entry costs, open tokens included, never exceeds the budget."""
    total = int(window.costs.sum()) + window.timeline.open_tokens
    if total != window.cost:
        raise InvariantError(f"budget: the window states a cost of {window.cost}; entries sum to {total}")
    if total > window.budget:
        over = int(np.searchsorted(np.cumsum(window.costs), window.budget, side="right"))
        where = _name(window, over) if over < len(window) else "the unfinished block"
        raise InvariantError(f"budget: cost {total} exceeds {window.budget}, from {where} on")


def tiling(window: WorkingContext) -> None:
    """2. Entries cover the live, allowed complete blocks once, in order; what is wholly dead or denied is absent."""
    start = window.first_blocks
    stop = start + window.span_blocks
    _refuse(window, np.diff(start, prepend=-1) <= 0, "tiling: out of order")
    _refuse(window, start < np.concatenate([[0], stop])[: start.size], "tiling: overlaps the one before")
    _refuse(window, window.timeline.dead_mask(window.lod, window.index), "tiling: wholly dead")
    gap_start = np.concatenate([[0], stop]).astype(np.int64)
    gap_stop = np.concatenate([start, [window.timeline.blocks]])
    uncovered = (gap_start < gap_stop) & ~window.timeline.absent_spans(gap_start, gap_stop)
    for at in np.flatnonzero(uncovered)[:1].tolist():
        where = f"before {_name(window, at)}" if at < len(window) else "at the end"
        raise InvariantError(f"tiling: live blocks in [{gap_start[at]}, {gap_stop[at]}) have no entry, {where}")


def alignment(window: WorkingContext) -> None:
    """3. Each entry is exactly one complete tree node, or one complete raw block."""
    _refuse(window, (window.lod < 0) | (window.lod > MAX_LOD), "alignment: no such level")
    _refuse(window, window.index < 0, "alignment: negative index")
    stop = window.first_blocks + window.span_blocks
    _refuse(window, stop > window.timeline.blocks, "alignment: not complete yet")


def tail(window: WorkingContext) -> None:
    """4. Blocks that overlap the last ``recent`` tokens are raw, and no block is whose raw tokens are archived."""
    reaches = window.first_blocks + window.span_blocks > window.tail_start
    pruned = window.timeline.pruned_mask(window.lod, window.index)
    _refuse(window, reaches & (window.lod > 0) & ~pruned, "tail: a gist in the protected tail")
    _refuse(window, pruned & (window.lod == 0), "tail: raw, but its tokens are pruned")


def tree(timeline: Timeline, gists: Mapping[int, int], *, before: Timeline | None = None) -> None:
    """5. Append-only, and one gist for each complete node at each level.

    Args:
        timeline: the memory's extent.
        gists: number of gists that a layer holds, by lod; levels without complete nodes may be
            absent.
        before: an earlier extent that this one has to continue.
    """
    if before is not None and not timeline.grows_from(before):
        raise InvariantError(f"tree: {timeline.tokens} tokens do not continue the {before.tokens} of before")
    for lod in range(1, max(timeline.levels, *gists.keys(), 0) + 1):
        complete = timeline.blocks // BLOCK ** (lod - 1)
        if gists.get(lod, 0) != complete:
            raise InvariantError(
                f"tree: LOD{lod} has {complete} complete nodes and {gists.get(lod, 0)} gists; the"
                f" first difference is at node ({lod}, {min(complete, gists.get(lod, 0))})"
            )


def positions(
    window: WorkingContext,
    entry: IntArray | None = None,
    position: NDArray[np.integer] | NDArray[np.floating] | None = None,
    *,
    own: bool = False,
) -> None:
    """6. Order is never broken; a raw token keeps its position, a gist sits at its span's centre.

    Args:
        window: without more, the entries' own centres are checked.
        entry: int64[s], which entry each slot shown to the base came from; ``len(window)`` stands
            for the unfinished block.
        position: number[s], the slots' positions under any strategy; they may never decrease.
        own: positions are absolute, so raw slots have to lie in their block, strictly increasing,
            and gist slots within half a token of the centre.
    """
    _refuse(window, np.diff(window.centres, prepend=-1.0) <= 0, "positions: centre not after the last")
    if entry is None or position is None:
        return
    for values, what in ((entry, "slots out of entry order"), (position, "position decreases")):
        for slot in np.flatnonzero(np.diff(values) < 0)[:1] + 1:
            raise InvariantError(f"positions: {what} at slot {slot}, {_name(window, int(entry[slot]))}")
    if not own:
        return
    open_start = window.timeline.blocks * BLOCK
    low = np.append(np.where(window.lod == 0, window.starts, window.centres - 0.5), open_start)
    high = np.append(
        np.where(window.lod == 0, window.stops - 1, window.centres + 0.5),
        window.timeline.tokens - 1,
    )
    raw = np.append(window.lod == 0, True)[entry]
    wrong: BoolArray = (position < low[entry]) | (position > high[entry])
    wrong[1:] |= (np.diff(position) == 0) & raw[1:]
    for slot in np.flatnonzero(wrong)[:1]:
        raise InvariantError(f"positions: slot {slot} at {position[slot]} is outside of {_name(window, int(entry[slot]))}")


def allowed(window: WorkingContext) -> None:
    """7, for a window: no entry's span holds a block that is denied to the reader, dead or not."""
    _refuse(window, window.timeline.denied_mask(window.lod, window.index), "isolation: holds denied blocks")


def isolation(window: WorkingContext, lod: LodArray, index: IntArray, denied: Sequence[BlockRange] = ()) -> None:
    """7. The base sees entries of this window only, and nothing whose span holds a denied block.

    Args:
        window: the working context.
        lod: int8[m], levels of what is about to be shown.
        index: int64[m], their indexes.
        denied: block ranges that the reader may not see, not even inside of a gist, besides those of the timeline.
    """
    allowed(window)
    ours = set(zip(window.lod.tolist(), window.index.tolist(), strict=True))
    for node in zip(lod.tolist(), index.tolist(), strict=True):
        if node not in ours:
            raise InvariantError(f"isolation: {node} is shown but is not in the window")
    start = first_blocks_of(lod, index)
    stop = start + span_blocks_of(lod)
    for a, b in denied:
        for at in np.flatnonzero((start < b) & (stop > a))[:1]:
            raise InvariantError(f"isolation: ({lod[at]}, {index[at]}) holds denied blocks of [{a}, {b})")


def constant_compute(work: Sequence[tuple[int, float]], *, tolerance: float = 0.05, per_level: float = 0.0) -> None:
    """8. Work per step does not grow with the history, log32 levels aside.

    Args:
        work: pairs of (tokens of history, work per step in any unit); the shortest history is the
            measure.
        tolerance: allowed relative growth.
        per_level: allowed absolute growth for each level that the longer history adds.
    """
    if not work:
        return
    shortest, measure = min(work)
    for tokens, amount in work:
        levels = top_lod(tokens // BLOCK) - top_lod(shortest // BLOCK)
        allowed = measure * (1 + tolerance) + per_level * levels
        if amount > allowed:
            raise InvariantError(
                f"constant_compute: {amount:g} per step at {tokens:,} tokens, {measure:g} at"
                f" {shortest:,}; {allowed:g} is allowed"
            )


def determinism(first: Sequence[object], second: Sequence[object]) -> None:
    """9. Two runs of the same inputs, seed and version leave the same trace of comparable steps."""
    for step, (one, two) in enumerate(zip(first, second, strict=False)):
        if one != two:
            raise InvariantError(f"determinism: step {step} differs: {one!r} and {two!r}")
    if len(first) != len(second):
        raise InvariantError(f"determinism: traces of {len(first)} and {len(second)} steps")


def _refuse(window: WorkingContext, wrong: BoolArray, what: str) -> None:
    at = int(np.argmax(wrong)) if wrong.size else 0
    if wrong.size and wrong[at]:
        raise InvariantError(f"{what}: {_name(window, at)}")


def _name(window: WorkingContext, at: int) -> str:
    if at >= len(window):
        return "the unfinished block"
    return f"entry {at} = ({window.lod[at]}, {window.index[at]})"
