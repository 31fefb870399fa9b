"""Room for new tokens: collapse what is worth least, as deep as it takes.

Raw blocks that left the tail become LOD1 gists, whole families of gists their parents, and so on
up. In the end the window is the coarsest tiling, whose size is logarithmic in the history: that is
what keeps a session inside its budget for as long as it runs.
"""

from __future__ import annotations

import heapq

import numpy as np

from megacontext.core.allocator.plan import Ledger, Plan, Reason
from megacontext.core.allocator.scores import FocusScores, worth
from megacontext.core.edits import Collapse, Edit, apply_all
from megacontext.core.node import BLOCK, FloatArray, Node, node_blocks, parent, parents_of
from megacontext.core.timeline import Timeline
from megacontext.core.working_context import WorkingContext
from megacontext.errors import BudgetError, InvalidInput

_CHUNK = 2 * BLOCK  # tokens per step of a long advance: small, so that what matters stays detailed


def make_room(window: WorkingContext, tokens: int, scores: FocusScores | None = None) -> Plan:
    """Plan the collapses after which ``tokens`` more tokens fit into the budget.

    The family with the lowest mean score goes first; equal ones finest first, then oldest first. So
    without scores, raw blocks before the tail are gisted, oldest first, before any gists are
    merged.

    Args:
        window: the working context; not changed.
        tokens: room that is needed, in tokens.
        scores: what each entry is worth, or None for age alone.

    Raises:
        BudgetError: if even the coarsest tiling leaves too little room; names what is needed.
    """
    values = np.zeros(len(window)) if scores is None else worth(window, scores).entries
    plan = collapse_until(window, tokens, values)
    if plan.cost + tokens > window.budget:
        raise BudgetError(
            f"{tokens} more tokens do not fit: collapsed as far as possible, the window costs"
            f" {plan.cost} of {window.budget}; raise the budget to {plan.cost + tokens}, lower"
            f" recent={window.recent}, or add fewer tokens at a time"
        )
    return plan


def advance_within_budget(
    window: WorkingContext, timeline: Timeline, scores: FocusScores | None = None
) -> tuple[WorkingContext, tuple[Edit, ...]]:
    """Follow a timeline that grew by any amount, collapsing on the way; the window and its edits.

    New blocks enter raw and are gisted once they are older than the tail and room is short, so an
    append may be larger than the budget. Cost is linear in the tokens added.

    Raises:
        InvalidInput: if the timeline is not a later state of the window's.
        BudgetError: if not even a token more fits beside the coarsest tiling.
    """
    if not timeline.grows_from(window.timeline):
        raise InvalidInput("advance needs a later timeline of the same reader: longer, with nothing back from the dead")
    values = np.zeros(len(window)) if scores is None else worth(window, scores).entries
    done: list[Edit] = []
    # Deaths first: they only free budget.
    after, values = _follow(window, timeline.truncate(window.timeline.tokens), values)
    while after.timeline != timeline:
        left = timeline.tokens - after.timeline.tokens
        chunk = min(left, max(_CHUNK, left // 64))
        plan = collapse_until(after, chunk, values)
        room = after.budget - plan.cost
        if room <= 0:
            make_room(after, 1)  # raises, with the numbers
        collapsed = apply_all(plan.edits, after)
        if plan.edits:
            values = carry(after, collapsed, values)
        done += plan.edits
        step = timeline.truncate(after.timeline.tokens + min(chunk, room))
        after, values = _follow(collapsed, step, values)
    return after, tuple(done)


def collapse_until(window: WorkingContext, tokens: int, values: FloatArray) -> Plan:
    """``make_room`` as far as possible: stops without an error when nothing is left to collapse.

    values float64[n] is the worth of each entry; what is made room for keeps the highest.
    """
    rows: list[tuple[Edit, float, int, Reason]] = [
        (Collapse(*node), -value, -saving, Reason.ROOM) for node, value, saving in cheapest_collapses(window, tokens, values)
    ]
    cost = window.cost + sum(row[2] for row in rows)
    return Plan(tuple(row[0] for row in rows), cost, Ledger.of(rows))


def cheapest_collapses(
    window: WorkingContext, tokens: int, values: FloatArray, barred: frozenset[Node] = frozenset()
) -> list[tuple[Node, float, int]]:
    """Collapses, worst family first, until ``tokens`` fit or none is left: (parent, mean value, cost freed).

    barred nodes are not collapsed into; neither is, then, anything above them.
    """
    missing = window.cost + tokens - window.budget
    taken: list[tuple[Node, float, int]] = []
    if missing <= 0:
        return taken
    pool = _Pool(window, values, barred)
    while missing > 0 and pool.heap:
        taken.append(pool.collapse_worst())
        missing -= taken[-1][2]
    return taken


def carry(before: WorkingContext, after: WorkingContext, values: FloatArray) -> FloatArray:
    """Values of one window's entries on an edited one, float64[entries of after].

    An entry in both keeps its value, a merged one has the mean of what it replaced, and what was
    opened has 0: nobody has said anything about the children yet.
    """
    low = np.searchsorted(before.first_blocks, after.first_blocks)
    high = np.searchsorted(before.first_blocks, after.first_blocks + after.span_blocks)
    sums = np.add.reduceat(np.append(values, 0.0), np.column_stack([low, high]).ravel())[::2]
    at = before.covering(after.first_blocks)
    finer = (at >= 0) & (before.lod[at] > after.lod)
    mean: FloatArray = np.where(finer, 0.0, sums / np.maximum(high - low, 1))
    return mean


class _Pool:
    """Families that can collapse, worst first; collapsing one may complete the next level's."""

    def __init__(self, window: WorkingContext, values: FloatArray, barred: frozenset[Node]) -> None:
        self._window, self._barred = window, barred
        up = (window.lod + 1).astype(np.int8)
        # One key per (lod, parent); 2**56 exceeds any index.
        keys = (up.astype(np.int64) << 56) | parents_of(window.lod, window.index)
        unique, at, inverse, count = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        index = unique & ((1 << 56) - 1)
        size = window.timeline.family_sizes(up[at], index)
        total = np.bincount(inverse, weights=values, minlength=unique.size)
        columns = (up[at], index, count, total, size)
        self._groups: dict[Node, tuple[int, float]] = {}
        self.heap: list[tuple[bool, float, int, int, Node, int]] = []
        for lod, i, have, sum_, want in zip(*(c.tolist() for c in columns), strict=True):
            self._groups[(lod, i)] = (have, sum_)
            if have == want:
                self._offer((lod, i), sum_ / have, have)

    def collapse_worst(self) -> tuple[Node, float, int]:
        """Take the next family out: (parent, mean value, cost freed)."""
        _, value, _, _, node, saving = heapq.heappop(self.heap)
        above = parent(*node)
        have, total = self._groups.get(above, (0, 0.0))
        self._groups[above] = (have + 1, total + value)
        size = self._window.timeline.family_size(*above)
        if have + 1 == size:
            self._offer(above, (total + value) / size, size)
        return node, value, saving

    def _offer(self, node: Node, value: float, children: int) -> None:
        start, stop = node_blocks(*node)
        if stop > self._window.tail_start or node in self._barred or self._window.timeline.holds_denied(*node):
            return
        saving = children * (BLOCK if node[0] == 1 else self._window.vectors) - self._window.vectors
        # What frees nothing comes last: it is only done to reach the level above.
        heapq.heappush(self.heap, (saving == 0, value, node[0], start, node, saving))


def _follow(window: WorkingContext, timeline: Timeline, values: FloatArray) -> tuple[WorkingContext, FloatArray]:
    """``advance`` with the values of the entries that stay; new ones are worth 0."""
    after = window.advance(timeline)
    if timeline.dead != window.timeline.dead:
        values = values[~timeline.dead_mask(window.lod, window.index)]
    return after, np.concatenate([values, np.zeros(len(after) - values.size)])
