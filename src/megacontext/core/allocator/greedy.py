"""The greedy allocator: best first, collapses pay for expansions, every refusal has a reason.

Scores: positive opens, negative closes (see ``scores``). Candidates are gists above the expand
threshold, families below minus the collapse threshold, and targets below high-level gists, which
need a path of expansions. They are ranked by gain per cost, in units of opening one block, so that
among equal costs the score decides. An expansion that does not fit may be paid by collapsing the
families that are worth least, as long as they are worth less than it gains.
"""

from __future__ import annotations

import heapq

import numpy as np

from megacontext.core.allocator.config import AllocatorConfig
from megacontext.core.allocator.history import EditHistory
from megacontext.core.allocator.plan import Ledger, Plan, Reason
from megacontext.core.allocator.room import carry, collapse_until
from megacontext.core.allocator.scores import FocusScores, worth
from megacontext.core.edits import Collapse, Edit, Expand, apply_all, families, inverse
from megacontext.core.node import BLOCK, BoolArray, FloatArray, IntArray, Node, ancestor
from megacontext.core.working_context import WorkingContext


class GreedyAllocator:
    """Plans by score; see the module for the rules and ``AllocatorConfig`` for the knobs."""

    def __init__(self, config: AllocatorConfig | None = None) -> None:
        self.config = config or AllocatorConfig()

    def plan(self, window: WorkingContext, scores: FocusScores, history: EditHistory | None = None) -> Plan:
        """Plan one refocus; see ``Allocator.plan``.

        Edits that keep the reserve come first. If the budget cannot hold the reserve even then, the
        plan does what it can and expands nothing.
        """
        scores.check(window)
        blocked = (history or EditHistory()).blocked(self.config.cooldown)
        room = collapse_until(window, self.config.reserve, worth(window, scores).entries)
        edits, ledger, left = list(room.edits), room.ledger, self.config.max_edits
        done: tuple[Edit, ...] = room.edits
        while True:
            if done:
                window, scores = _edited(window, scores, done)
                blocked |= {inverse(edit) for edit in done}
            step = _Refocus(window, scores, blocked, self.config, left)
            step.run()
            done, left = tuple(step.edits), step.left
            edits += done
            # Collapses may have completed the families of the level above, which can pay in turn.
            if not done or left == 0 or Reason.OVER_BUDGET not in step.reason:
                return Plan(tuple(edits), step.cost, ledger + step.ledger())
            ledger += step.ledger().chosen()


def _edited(window: WorkingContext, scores: FocusScores, edits: tuple[Edit, ...]) -> tuple[WorkingContext, FocusScores]:
    """The window after edits, and what the scores say about it."""
    after = apply_all(edits, window)
    entries = carry(window, after, scores.entries.astype(np.float64)).astype(np.float32)
    return after, FocusScores(entries, scores.targets)


# (-gain per cost, comes after collapses, age, row): the smallest is taken first.
_Rank = tuple[float, bool, int, int]


class _Refocus:
    """One run of the greedy rules: candidate columns, and what has been taken so far.

    Rows of the ledger: one expansion per entry [0, n), one collapse per family [n, n + f), one path
    per deep target [n + f, n + f + k), and at the end tail blocks, dead targets and steps of paths.
    """

    def __init__(
        self,
        window: WorkingContext,
        scores: FocusScores,
        blocked: frozenset[Edit],
        config: AllocatorConfig,
        left: int | None,
    ) -> None:
        self.window, self.value = window, worth(window, scores)
        # Opening a high gist gains its own score; what lies below it pays at the leaves.
        self.opening = np.where(window.lod > 1, scores.entries, self.value.entries)
        self.blocked, self.config = blocked, config
        self.cost, self.left = window.cost, left
        self.edits: list[Edit] = []
        self.path_steps: list[tuple[Edit, float, int, Reason]] = []
        self.details: dict[int, str] = {}
        self.opened: set[Node] = set()
        # Columns are computed with NumPy; what the loop touches row by row is faster as lists.
        self.nodes: list[Node] = list(zip(window.lod.tolist(), window.index.tolist(), strict=True))
        self._measure_families()
        self.whole_cost = self._path_costs()
        self.costs = np.concatenate([window.expand_costs, -self.family.saving, self.whole_cost])
        self._first_reasons()

    def _measure_families(self) -> None:
        window, family = self.window, families(self.window)
        self.family = family
        self.targets_at = len(window) + len(family)
        price = np.zeros(len(family))
        family_of = np.full(len(window) + 1, -1, np.int64)
        if len(family):
            # Sums over [first, first + count); a trailing zero lets the last family end at n.
            bounds = np.column_stack([family.first, family.first + family.count]).ravel()
            price = np.add.reduceat(np.append(self.value.entries, 0.0), bounds)[::2] / family.count
            member = np.repeat(np.arange(len(family)), family.count)
            start = np.cumsum(family.count) - family.count
            family_of[np.arange(member.size) + (family.first - start)[member]] = member
        self.price = price
        self.family_of: list[int] = family_of.tolist()
        # Cheapest first, then oldest; families are in timeline order already.
        payers = np.argsort(price, kind="stable")
        self.payers: list[int] = payers[family.saving[payers] > 0].tolist()
        self.prices: list[float] = price.tolist()
        self.savings: list[int] = family.saving.tolist()

    def _first_reasons(self) -> None:
        config, n = self.config, len(self.window)
        self.score = np.concatenate([self.opening, -self.price, self.value.gain])
        raw = self.window.lod == 0
        wanted = self.score > config.expand_threshold
        wanted[:n] &= ~raw
        wanted[n : self.targets_at] = -self.price > config.collapse_threshold
        reason = np.full(self.score.size, Reason.BELOW_THRESHOLD, np.int8)
        reason[:n][raw] = Reason.LEAF
        self.family_open = [True] * len(self.family)
        for edit in self.blocked:
            row = self._row(edit)
            if row is None:
                continue
            if row >= n:
                self.family_open[row - n] = False  # it cannot pay either
            if wanted[row] or row >= n:
                reason[row] = Reason.COOLDOWN
            wanted[row] = False
        self.wanted = wanted
        self.reason: list[int] = reason.tolist()

    def _row(self, edit: Edit) -> int | None:
        if isinstance(edit, Expand):
            return self.window.find(edit.lod, edit.index)
        same = (self.family.lod == edit.lod) & (self.family.index == edit.index)
        found = np.flatnonzero(same)
        return len(self.window) + int(found[0]) if found.size else None

    def run(self) -> None:
        """Take candidates, best first, until none or no edit is left."""
        heap = self._ranked()
        heapq.heapify(heap)
        while heap and self.left != 0:
            row = heapq.heappop(heap)[-1]
            if self.reason[row] != Reason.BELOW_THRESHOLD:
                continue  # settled: opened on another's path, or an older rank of the same target
            if row < len(self.window):
                self._try_open(row, row, [self.nodes[row]], float(self.score[row]))
            elif row < self.targets_at:
                self._close_family(row - len(self.window))
            else:
                for other in self._open_target(row):
                    heapq.heappush(heap, self._rank(other))
        for *_, row in heap:
            if self.reason[row] == Reason.BELOW_THRESHOLD:
                self.reason[row] = Reason.EDIT_LIMIT

    def _ranked(self) -> list[_Rank]:
        """All wanted rows. Ties: collapses first, oldest first; then expansions, newest first."""
        rows = np.flatnonzero(self.wanted)
        first = self.window.first_blocks
        age = np.concatenate([first, first[self.family.first], self.value.block])[rows]
        closes = (rows >= len(self.window)) & (rows < self.targets_at)
        unit = BLOCK - self.window.vectors
        rate = np.where(closes, 1.0, unit / np.maximum(self.costs[rows], 1)) * self.score[rows]
        late = self._after_targets(rate, rows)
        columns = (-rate, ~closes | late, np.where(closes, age, -age), rows)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _after_targets(self, rate: FloatArray, rows: IntArray) -> BoolArray:
        """Let a target below a family go first if it gains more than the family's collapse.

        A long path has a low rate, so the collapse would come first and shut the target out. Lowers
        ``rate`` of such families in place to that of the target; returns where it did, bool[rows].
        """
        late = np.zeros(rows.size, np.bool_)
        place = {row: at for at, row in enumerate(rows.tolist())}
        for target in rows[np.searchsorted(rows, self.targets_at) :].tolist():
            member = self.family_of[self._entry(target)]
            at = place.get(len(self.window) + member, -1) if member >= 0 else -1
            if at >= 0 and self.score[target] > self.score[rows[at]]:
                rate[at] = min(rate[at], rate[place[target]])
                late[at] = True
        return late

    def _rank(self, row: int) -> _Rank:
        """The rank of a target as its path is now."""
        cost = max(self._path_cost(self._path(row)), 1)
        rate = (BLOCK - self.window.vectors) / cost * float(self.score[row])
        return -rate, True, -int(self.value.block[row - self.targets_at]), row

    def _open_target(self, row: int) -> list[int]:
        """Open the path to a target; other targets whose paths it shortened, to be ranked anew."""
        path = self._path(row)
        opened = self._try_open(row, self._entry(row), path, float(self.score[row]))
        lod, index = path[0]
        if not opened or lod == 1:
            return []
        below = np.flatnonzero(self.value.block // BLOCK ** (lod - 1) == index) + self.targets_at
        too_dear = (Reason.OVER_BUDGET, Reason.NO_BETTER, Reason.EDIT_LIMIT)
        for other in below.tolist():
            if self.reason[other] in too_dear:
                self.reason[other] = Reason.BELOW_THRESHOLD
        still = Reason.BELOW_THRESHOLD
        return [at for at in below.tolist() if self.wanted[at] and self.reason[at] == still]

    def _close_family(self, at: int) -> None:
        if self.family_open[at]:
            self._collapse(at, Reason.SCORE)
        else:
            self.reason[len(self.window) + at] = Reason.CONFLICT

    def _try_open(self, row: int, entry: int, path: list[Node], gain: float) -> bool:
        """Open a path if it is allowed, fits or is paid for, and is within the edit limit."""
        member = self.family_of[entry]
        if member >= 0 and self.reason[len(self.window) + member] < Reason.BELOW_THRESHOLD:
            self.reason[row] = Reason.CONFLICT
            return False
        if self.blocked and any(Expand(*node) in self.blocked for node in path):
            self.reason[row] = Reason.COOLDOWN
            return False
        payers = self._pay(self._path_cost(path), gain, member)
        if isinstance(payers, Reason):
            self.reason[row] = payers
            return False
        if self.left is not None and len(path) + len(payers) > self.left:
            path, payers = self._part_of(path, gain, member)
            if not path:
                self.reason[row] = Reason.EDIT_LIMIT
                return False
        for at in payers:
            self._collapse(at, Reason.PAYS)
        self._expand(row, entry, path, gain)
        return self.reason[row] < Reason.BELOW_THRESHOLD

    def _pay(self, cost: int, gain: float, member: int) -> list[int] | Reason:
        """The families to collapse so that ``cost`` fits, in sum worth less than ``gain``."""
        need = cost + self.cost + self.config.reserve - self.window.budget
        if need <= 0 or cost == 0:
            return []
        taken: list[int] = []
        price = 0.0
        for at in self.payers:
            if not self.family_open[at] or at == member:
                continue
            price += max(self.prices[at], 0.0)
            if price >= gain:
                return Reason.NO_BETTER
            taken.append(at)
            need -= self.savings[at]
            if need <= 0:
                break
        else:
            return Reason.OVER_BUDGET
        for at in reversed(taken[:-1]):  # a large one taken late can make small ones superfluous
            if need + self.savings[at] <= 0:
                need += self.savings[at]
                taken.remove(at)
        return taken

    def _part_of(self, path: list[Node], gain: float, member: int) -> tuple[list[Node], list[int]]:
        """The first steps of a path that no single refocus could finish; the next one goes on.

        Only for the best candidate of a refocus: a path that merely came too late waits instead.
        """
        if self.left != self.config.max_edits:
            return [], []
        for steps in range(len(path) - 1, 0, -1):
            payers = self._pay(self._path_cost(path[:steps]), gain, member)
            if not isinstance(payers, Reason) and steps + len(payers) <= (self.left or 0):
                return path[:steps], payers
        return [], []

    def _expand(self, row: int, entry: int, path: list[Node], gain: float) -> None:
        member = self.family_of[entry]
        if member >= 0:
            self.family_open[member] = False
        whole = self._path(row) if row >= self.targets_at else path
        total = self._path_cost(whole)
        for node in path:
            edit, cost = Expand(*node), self._path_cost([node])
            self._take(edit, cost)
            self.opened.add(node)
            if row < self.targets_at or node == whole[-1]:
                continue
            if node == self.nodes[entry]:
                self.reason[entry] = Reason.PATH
            else:
                self.path_steps.append((edit, gain, cost, Reason.PATH))
        if len(path) < len(whole):
            self.reason[row] = Reason.EDIT_LIMIT
            self.details[row] = f"{len(path)} of {len(whole)} steps taken, the next refocus goes on"
            return
        self.reason[row] = Reason.SCORE
        if len(whole) > 1:
            self.details[row] = f"a path of {len(whole)} expansions that costs {total}"

    def _collapse(self, at: int, reason: Reason) -> None:
        self.reason[len(self.window) + at] = reason
        self.family_open[at] = False
        edit = Collapse(int(self.family.lod[at]), int(self.family.index[at]))
        self._take(edit, -self.savings[at])

    def _take(self, edit: Edit, cost: int) -> None:
        self.edits.append(edit)
        self.cost += cost
        if self.left is not None:
            self.left -= 1

    def _entry(self, row: int) -> int:
        return int(self.value.entry[row - self.targets_at])

    def _path(self, row: int) -> list[Node]:
        """The nodes still to be opened for a target, top first."""
        block = int(self.value.block[row - self.targets_at])
        top = self.nodes[self._entry(row)][0]
        nodes = ((lod, ancestor(block, lod)) for lod in range(top, 0, -1))
        return [node for node in nodes if node not in self.opened]

    def _path_cost(self, path: list[Node]) -> int:
        vectors = self.window.vectors
        size = self.window.timeline.family_size
        return sum(BLOCK - vectors if lod == 1 else (size(lod, index) - 1) * vectors for lod, index in path)

    def _path_costs(self) -> IntArray:
        """Costs of all deep targets' whole paths, int64[k]."""
        block, vectors = self.value.block, self.window.vectors
        cost = np.full(block.size, BLOCK - vectors, np.int64)
        top = self.window.lod[self.value.entry]
        for lod in range(2, int(top.max(initial=1)) + 1):
            level = np.full(block.size, lod, np.int8)
            size = self.window.timeline.family_sizes(level, block // BLOCK ** (lod - 1))
            cost += np.where(lod <= top, (size - 1) * vectors, 0)
        return cost

    def ledger(self) -> Ledger:
        """Everything that was considered, with its final reason."""
        window, family, value = self.window, self.family, self.value
        k, keep = value.block.size, BLOCK - window.vectors
        tail = window.index[(window.lod == 0) & (window.index >= window.tail_start)]
        reason = np.array(self.reason, np.int8)
        done = reason[self.targets_at :] < Reason.BELOW_THRESHOLD
        self.costs[self.targets_at :][done] = keep  # a chosen edit states its own cost
        main = Ledger(
            np.repeat([True, False, True], [len(window), len(family), k]),
            np.concatenate([window.lod, family.lod, np.ones(k, np.int8)]),
            np.concatenate([window.index, family.index, value.block]),
            self.score,
            self.costs,
            reason,
            self.details,
        )
        rest: list[tuple[Edit, float, int, Reason]] = [*self.path_steps]
        tail_score = value.entries[len(window) - tail.size :]
        for block, score in zip(tail.tolist(), tail_score.tolist(), strict=True):
            rest.append((Collapse(1, block), -score, -keep, Reason.TAIL))
        rest += [(Expand(1, block), 0.0, keep, Reason.DEAD) for block in value.dead.tolist()]
        return main + Ledger.of(rest)
