"""The edit algebra: a gist replaced by its live children, or a whole family by its parent.

Windows that start legal stay legal: ``apply`` refuses what would break an invariant, so nothing has
to be checked or healed afterwards. ``apply(inverse(e), apply(e, w)) == w`` for each legal edit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from megacontext.core.node import (
    BLOCK,
    MAX_LOD,
    IntArray,
    LodArray,
    Node,
    first_blocks_of,
    node_blocks,
    parent,
    parents_of,
    span_blocks_of,
)
from megacontext.core.working_context import WorkingContext
from megacontext.errors import EditError


@dataclass(frozen=True, slots=True)
class Expand:
    """Replace the gist of node ``(lod, index)`` by its live children (LOD1: by the raw block)."""

    lod: int
    index: int


@dataclass(frozen=True, slots=True)
class Collapse:
    """Replace all live children of node ``(lod, index)`` by its gist (LOD1: the raw block)."""

    lod: int
    index: int


Edit: TypeAlias = Expand | Collapse


@dataclass(frozen=True, eq=False)
class Families:
    """All collapses that a window allows, as columns in timeline order.

    lod int8[f] and index int64[f] name the parents; the family is at positions
    ``[first, first + count)``; ``saving`` int64[f] is the cost that collapsing it frees (>= 0).
    """

    lod: LodArray
    index: IntArray
    first: IntArray
    count: IntArray
    saving: IntArray

    def __len__(self) -> int:
        return int(self.lod.size)


def families(window: WorkingContext) -> Families:
    """The families that are wholly present, below a complete parent that may be shown and outside of the tail."""
    lod, index = window.lod, parents_of(window.lod, window.index)
    change = (lod[1:] != lod[:-1]) | (index[1:] != index[:-1])
    first = np.flatnonzero(np.concatenate([[len(window) > 0], change]))
    count = np.diff(first, append=len(window))
    up = (lod[first] + 1).astype(np.int8)
    index = index[first]
    stop = first_blocks_of(up, index) + span_blocks_of(up)
    # Children of one parent are neighbours once all live ones are there; a split run is too short.
    keep = (stop <= window.tail_start) & (count == window.timeline.family_sizes(up, index))
    keep &= ~window.timeline.denied_mask(up, index)
    up, index, first, count = up[keep], index[keep], first[keep], count[keep]
    each = np.where(up == 1, np.int64(BLOCK), np.int64(window.vectors))
    return Families(up, index, first, count, count * each - window.vectors)


def inverse(edit: Edit) -> Edit:
    """The edit that takes ``edit`` back."""
    return (Collapse if isinstance(edit, Expand) else Expand)(edit.lod, edit.index)


def why_illegal(edit: Edit, window: WorkingContext) -> str | None:
    """Why an edit cannot be applied, naming the entry; None if it can."""
    located = _locate(edit, window)
    return located if isinstance(located, str) else None


def is_legal(edit: Edit, window: WorkingContext) -> bool:
    """Whether ``apply`` would succeed."""
    return why_illegal(edit, window) is None


def cost_change(edit: Edit, window: WorkingContext) -> int:
    """What an edit adds to the window's cost (negative for a collapse), whether it fits or not."""
    if edit.lod == 1:
        growth = BLOCK - window.vectors
    else:
        growth = (window.timeline.family_size(edit.lod, edit.index) - 1) * window.vectors
    return growth if isinstance(edit, Expand) else -growth


def apply(edit: Edit, window: WorkingContext) -> WorkingContext:
    """The window after one edit.

    Raises:
        EditError: if the edit is illegal here; the message names the entry and the reason.
    """
    located = _locate(edit, window)
    if isinstance(located, str):
        raise EditError(located)
    return window.splice(*located)


def apply_all(edits: Iterable[Edit], window: WorkingContext) -> WorkingContext:
    """The window after several edits, in order; every step has to be legal. O(entries) an edit."""
    for edit in edits:
        window = apply(edit, window)
    return window


def legal_edits(window: WorkingContext) -> list[Edit]:
    """Every edit that ``apply`` accepts: expansions in timeline order, then collapses."""
    closed = (window.lod == 0) | window.timeline.pruned_mask(window.lod, window.index)
    open_up = np.flatnonzero(~closed & (window.expand_costs <= window.free))
    edits: list[Edit] = [
        Expand(*node) for node in zip(window.lod[open_up].tolist(), window.index[open_up].tolist(), strict=True)
    ]
    close = families(window)
    edits += [Collapse(*n) for n in zip(close.lod.tolist(), close.index.tolist(), strict=True)]
    return edits


def between(before: WorkingContext, after: WorkingContext) -> tuple[Edit, ...]:
    """The edits that lead from one window to another over the same timeline.

    Collapses come first (finest first), then expansions (coarsest first), so that no step on the
    way costs more than the dearer of the two windows.

    Raises:
        EditError: if the windows differ in more than their entries.
    """
    if (before.timeline, before.recent, before.vectors) != (
        after.timeline,
        after.recent,
        after.vectors,
    ):
        raise EditError("edits lead only between windows over one timeline, tail and gist width")
    closed = [Collapse(*node) for node in sorted(_opened_below(after, before))]
    opened = [Expand(*node) for node in sorted(_opened_below(before, after), reverse=True)]
    return (*closed, *opened)


def _opened_below(coarse: WorkingContext, fine: WorkingContext) -> set[Node]:
    """The nodes that would have to be expanded where ``fine`` is finer than ``coarse``."""
    at = coarse.covering(fine.first_blocks)
    finer = np.flatnonzero((at >= 0) & (fine.lod < coarse.lod[at]))
    nodes: set[Node] = set()
    for node, top in zip(
        zip(fine.lod[finer].tolist(), fine.index[finer].tolist(), strict=True),
        coarse.lod[at[finer]].tolist(),
        strict=True,
    ):
        while node[0] < top:
            node = parent(*node)
            if node in nodes:
                break
            nodes.add(node)
    return nodes


def _locate(edit: Edit, window: WorkingContext) -> tuple[int, int, int, IntArray] | str:
    """Arguments of ``splice`` for a legal edit, or why it is illegal."""
    return _locate_expand(edit, window) if isinstance(edit, Expand) else _locate_collapse(edit, window)


def _locate_expand(edit: Expand, window: WorkingContext) -> tuple[int, int, int, IntArray] | str:
    lod, index = edit.lod, edit.index
    if lod == 0:
        return f"raw block {index} cannot expand further"
    position = window.find(lod, index) if 1 <= lod <= MAX_LOD and index >= 0 else None
    if position is None:
        return f"({lod}, {index}) is not an entry of the window, so it cannot expand"
    if lod == 1 and window.timeline.is_pruned(index):
        return f"the raw tokens of block {index} are pruned; megacontext restore brings them back"
    live = window.timeline.live_children(lod, index)
    growth = BLOCK - window.vectors if lod == 1 else (live.size - 1) * window.vectors
    if growth > window.free:
        return f"expanding ({lod}, {index}) adds {growth}, over budget: {window.free} of {window.budget} are free"
    return position, 1, lod - 1, live


def _locate_collapse(edit: Collapse, window: WorkingContext) -> tuple[int, int, int, IntArray] | str:
    lod, index = edit.lod, edit.index
    if not 1 <= lod <= MAX_LOD or index < 0 or not window.timeline.complete(lod, index):
        return f"({lod}, {index}) is not a complete node, so nothing can collapse into it"
    if node_blocks(lod, index)[1] > window.tail_start:
        return f"({lod}, {index}) reaches into the protected tail, which starts at block {window.tail_start}"
    if window.timeline.holds_denied(lod, index):
        return f"({lod}, {index}) holds blocks that are denied to this reader, so nothing can collapse into it"
    live = window.timeline.live_children(lod, index)
    first = window.find(lod - 1, int(live[0])) if live.size else None
    if first is not None:
        stop = first + live.size
        whole = np.array_equal(window.index[first:stop], live) and np.all(window.lod[first:stop] == lod - 1)
        if whole:
            return first, live.size, lod, np.array([index], np.int64)
    return f"the window does not hold all {live.size} live children of ({lod}, {index})"
