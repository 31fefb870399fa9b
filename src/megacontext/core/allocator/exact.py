"""The exact allocator: the best window under the budget when gains add up. Oracle and yardstick.

A knapsack on the tree: each subtree yields a table "best gain for at most this much extra cost",
and siblings are merged by max-plus convolution. Where no node is dead all costs are multiples of
one step, so tables stay short. Thresholds, cooldown and edit limits are the greedy rules'
business; here only the sum counts (``objective``), and equal sums keep the window as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import gcd

import numpy as np

from megacontext.core.allocator.config import ExactConfig
from megacontext.core.allocator.history import EditHistory
from megacontext.core.allocator.plan import Ledger, Plan, Reason
from megacontext.core.allocator.scores import FocusScores, worth
from megacontext.core.edits import Edit, Expand, between, cost_change, families
from megacontext.core.node import BLOCK, FloatArray, IntArray, Node, ancestor, children, first_blocks_of, parent
from megacontext.core.working_context import WorkingContext

_EDIT = 1e-9  # what each edit is charged, so that equal sums keep the window as it is
_LEAST = 1e-12  # gains closer than this are equal: rounding must not cause edits


def objective(before: WorkingContext, after: WorkingContext, scores: FocusScores) -> float:
    """The gain, in the scores' unit, of going from one window to another.

    Opening an entry gains its score (nothing if negative), having a target raw gains its gain, and
    each collapse loses the mean score of the children, which becomes the parent's score. Additive
    by
    definition: what the allocators maximise, not what a model will measure.
    """
    gains = _Gains(before, scores)
    total = 0.0
    for edit in between(before, after):
        node = (edit.lod, edit.index)
        total += gains.opening(node) if isinstance(edit, Expand) else -gains.mean(node)
    return total


class ExactAllocator:
    """Plans the window of greatest ``objective`` that keeps the reserve; too slow for decode."""

    def __init__(self, config: ExactConfig | None = None) -> None:
        self.config = config or ExactConfig()

    def plan(self, window: WorkingContext, scores: FocusScores, history: EditHistory | None = None) -> Plan:
        """Plan one refocus; see ``Allocator.plan``. The history makes no difference."""
        del history
        gains = _Gains(window, scores)
        solver = _Solver(window, gains, self.config.reserve)
        after = solver.best_window()
        edits = between(window, after)
        return Plan(edits, after.cost, _ledger(window, gains, edits))


class _Gains:
    """What edits gain on one window; see ``objective``."""

    def __init__(self, window: WorkingContext, scores: FocusScores) -> None:
        value = worth(window, scores)
        nodes = list(zip(window.lod.tolist(), window.index.tolist(), strict=True))
        self._timeline = window.timeline
        # Opening a high gist gains its own score; what lies below it is paid for where it lies.
        direct = np.where(window.lod > 1, scores.entries, value.entries)
        opening: list[float] = np.maximum(direct, 0.0).tolist()
        self._opening: dict[Node, float] = dict(zip(nodes, opening, strict=True))
        self._mean: dict[Node, float] = dict(zip(nodes, value.entries.tolist(), strict=True))
        self.entries = frozenset(nodes)
        self.on_path: set[Node] = set()
        for block, gain, entry in zip(value.block.tolist(), value.gain.tolist(), value.entry.tolist(), strict=True):
            self._opening[(1, block)] = max(gain, 0.0)
            for lod in range(1, int(window.lod[entry]) + 1):
                self.on_path.add((lod, ancestor(block, lod)))

    def opening(self, node: Node) -> float:
        """The gain of expanding a node."""
        return self._opening.get(node, 0.0)

    def mean(self, node: Node) -> float:
        """The score of an entry, or the mean over the live children of a node above entries."""
        if node not in self._mean:
            lod, _ = children(*node)
            live = self._timeline.live_children(*node).tolist()
            self._mean[node] = sum(self.mean((lod, child)) for child in live) / len(live)
        return self._mean[node]


@dataclass(frozen=True, eq=False)
class _Table:
    """Best gain of a subtree for at most ``c`` steps of extra cost, and its entries."""

    best: FloatArray
    entries: Callable[[int], list[Node]]


class _Solver:
    """Tree knapsack over everything before the tail."""

    def __init__(self, window: WorkingContext, gains: _Gains, reserve: int) -> None:
        self._window, self._gains, self._timeline = window, gains, window.timeline
        self._coarsest = WorkingContext.coarsest(window.timeline, window.budget, window.recent, window.vectors)
        nodes = zip(window.lod.tolist(), window.index.tolist(), strict=True)
        tops = self._coarsest.lod[self._coarsest.covering(window.first_blocks)].tolist()
        self._above: set[Node] = set()  # nodes strictly above the window's entries, up to the roots
        for node, top in zip(nodes, tops, strict=True):
            while node[0] < top:
                node = parent(*node)
                self._above.add(node)
        self._step = self._cost_step()
        free = max(window.budget - reserve - self._coarsest.cost, 0)
        self._size = free // self._step + 1

    def best_window(self) -> WorkingContext:
        """The optimum, as a window that checked its own invariants."""
        coarsest, window = self._coarsest, self._window
        gist = coarsest.lod > 0
        roots = zip(coarsest.lod[gist].tolist(), coarsest.index[gist].tolist(), strict=True)
        table = self._merge(self._table(node) for node in roots)
        entries = table.entries(self._size - 1)
        entries += [(0, block) for block in coarsest.index[~gist].tolist()]
        lod = np.array([lod for lod, _ in entries], np.int8)
        index = np.array([index for _, index in entries], np.int64)
        order = np.argsort(first_blocks_of(lod, index))
        return WorkingContext(window.timeline, lod[order], index[order], window.budget, window.recent, window.vectors)

    def _cost_step(self) -> int:
        """The greatest unit that all growths are multiples of."""
        step = BLOCK - self._window.vectors
        for node in self._above | self._gains.on_path | self._gains.entries:
            if node[0] > 0:
                step = gcd(step, self._growth(node))
        return max(step, 1)

    def _growth(self, node: Node) -> int:
        vectors = self._window.vectors
        if node[0] == 1:
            return BLOCK - vectors
        return (self._timeline.family_size(*node) - 1) * vectors

    def _table(self, node: Node) -> _Table:
        above, opening = node in self._above, self._gains.opening(node)
        if node[0] == 1 and self._timeline.is_pruned(node[1]):
            return _Table(np.zeros(self._size), lambda _: [node])
        if not above and opening <= 0 and node not in self._gains.on_path:
            return _Table(np.zeros(self._size), lambda _: [node])
        opened, base = self._opened(node), self._growth(node) // self._step
        # Above the entries the window is open here already: closing loses what lies below.
        closed_gain = -self._closing(node) if above else 0.0
        opened_gain = 0.0 if above else opening - _EDIT
        best = np.full(self._size, closed_gain)
        if base >= self._size:
            return _Table(best, lambda _: [node])
        inner = opened.best[: self._size - base] + opened_gain
        # Ties keep what is there: open above the entries, closed from them on.
        take = inner >= closed_gain - _LEAST if above else inner > closed_gain + _LEAST
        best[base:][take] = inner[take]

        def entries(cost: int) -> list[Node]:
            open_ = cost >= base and bool(take[cost - base])
            return opened.entries(cost - base) if open_ else [node]

        return _Table(best, entries)

    def _opened(self, node: Node) -> _Table:
        lod, _ = children(*node)
        live = self._timeline.live_children(*node).tolist()
        if lod == 0:
            return _Table(np.zeros(self._size), lambda _: [(0, node[1])])
        return self._merge(self._table((lod, child)) for child in live)

    def _closing(self, node: Node) -> float:
        """What collapsing a node with everything below it, down to the entries, loses."""
        if node not in self._above:
            return 0.0
        lod, _ = children(*node)
        live = self._timeline.live_children(*node).tolist()
        return self._gains.mean(node) + _EDIT + sum(self._closing((lod, child)) for child in live)

    def _merge(self, tables: Iterable[_Table]) -> _Table:
        merged = _Table(np.zeros(self._size), lambda _: [])
        for table in tables:
            merged = self._pair(merged, table)
        return merged

    def _pair(self, left: _Table, right: _Table) -> _Table:
        best = left.best + right.best[0]
        split: IntArray = np.zeros(self._size, np.int64)
        for spent in (np.flatnonzero(np.diff(right.best) > 0) + 1).tolist():
            trial = left.best[: self._size - spent] + right.best[spent]
            better = trial > best[spent:] + _LEAST
            best[spent:][better] = trial[better]
            split[spent:][better] = spent

        def entries(cost: int) -> list[Node]:
            spent = int(split[cost])
            return left.entries(cost - spent) + right.entries(spent)

        return _Table(best, entries)


def _ledger(window: WorkingContext, gains: _Gains, edits: tuple[Edit, ...]) -> Ledger:
    """Chosen edits, then every expansion and collapse of the window that was left out."""
    rows: list[tuple[Edit, float, int, Reason]] = []
    for edit in edits:
        node = (edit.lod, edit.index)
        score = gains.opening(node) if isinstance(edit, Expand) else -gains.mean(node)
        rows.append((edit, score, cost_change(edit, window), Reason.OPTIMAL))
    chosen = Ledger.of(rows)
    family = families(window)
    nodes = zip(family.lod.tolist(), family.index.tolist(), strict=True)
    considered = Ledger(
        np.repeat([True, False], [len(window), len(family)]),
        np.concatenate([window.lod, family.lod]),
        np.concatenate([window.index, family.index]),
        np.array(
            [gains.opening(n) for n in zip(window.lod.tolist(), window.index.tolist(), strict=True)]
            + [-gains.mean(node) for node in nodes]
        ),
        np.concatenate([window.expand_costs, -family.saving]),
        np.where(np.append(window.lod, family.lod) == 0, Reason.LEAF, Reason.NOT_OPTIMAL).astype(np.int8),
    )
    taken = {(isinstance(edit, Expand), edit.lod, edit.index) for edit in edits}
    columns = (considered.opens, considered.lod, considered.index)
    keys = zip(*(column.tolist() for column in columns), strict=True)
    return chosen + considered.only(np.array([key not in taken for key in keys], np.bool_))
