"""Everything that one refocus may do, as columns; the greedy allocator decides over its rows."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from megacontext.core.allocator.config import AllocatorConfig
from megacontext.core.allocator.plan import Ledger, Reason
from megacontext.core.allocator.scores import FocusScores, worth
from megacontext.core.edits import Collapse, Edit, Expand, families
from megacontext.core.node import BLOCK, BoolArray, FloatArray, IntArray, Node, ancestor
from megacontext.core.working_context import WorkingContext

# (-gain per cost, comes after collapses, age, row): the smallest is taken first.
Rank = tuple[float, bool, int, int]
Row = tuple[Edit, float, int, Reason]


class Candidates:
    """Candidate rows: an expansion per entry, a collapse per family, a path per deep target.

    Entries are rows [0, families_at), families [families_at, targets_at), targets the rest. Columns
    are computed with NumPy; what a loop touches row by row is kept as lists, which are faster there.

    score, cost: float64[m] in favour of each edit, int64[m] that it adds (a target: its whole path).
    wanted: bool[m], beyond its threshold and not in cooldown.
    first_reason: int8[m], why a row would be refused if nothing were done.
    nodes: the entries as (lod, index). member_of: the family of each entry, -1 if it is incomplete.
    price, saving: of each family, its mean worth and the cost freed. payers: families that free
    something, cheapest first, then oldest.
    """

    def __init__(
        self,
        window: WorkingContext,
        scores: FocusScores,
        blocked: frozenset[Edit],
        config: AllocatorConfig,
        first: int = 0,
    ) -> None:
        """``first``: the first entry that may be edited; see ``recompute``."""
        self.window, self.value = window, worth(window, scores)
        self.nodes: list[Node] = list(zip(window.lod.tolist(), window.index.tolist(), strict=True))
        self.family = families(window)
        self.families_at = len(window)
        self.targets_at = len(window) + len(self.family)
        price = self._measure_families()
        # Opening a high gist gains its own score; what lies below it pays at the leaves.
        opening = np.where(window.lod > 1, scores.entries, self.value.entries)
        self.score = np.concatenate([opening, -price, self.value.gain])
        self.cost = np.concatenate([window.expand_costs, -self.family.saving, self._path_costs()])
        self._first_reasons(blocked, config)
        if first:
            self._leave_alone(first)

    def _measure_families(self) -> FloatArray:
        family = self.family
        price = np.zeros(len(family))
        member_of = np.full(len(self.window), -1, np.int64)
        if len(family):
            # Sums over [first, first + count); a trailing zero lets the last family end at n.
            bounds = np.column_stack([family.first, family.first + family.count]).ravel()
            price = np.add.reduceat(np.append(self.value.entries, 0.0), bounds)[::2] / family.count
            member = np.repeat(np.arange(len(family)), family.count)
            start = np.cumsum(family.count) - family.count
            member_of[np.arange(member.size) + (family.first - start)[member]] = member
        payers = np.argsort(price, kind="stable")  # families are in timeline order already
        self.member_of: list[int] = member_of.tolist()
        self.payers: list[int] = payers[family.saving[payers] > 0].tolist()
        self.price: list[float] = price.tolist()
        self.saving: list[int] = family.saving.tolist()
        return price

    def _first_reasons(self, blocked: frozenset[Edit], config: AllocatorConfig) -> None:
        entries, closing = slice(0, self.families_at), slice(self.families_at, self.targets_at)
        raw = self.window.lod == 0
        pruned = self.window.timeline.pruned_mask(self.window.lod, self.window.index)
        self.wanted: BoolArray = self.score > config.expand_threshold
        self.wanted[entries] &= ~(raw | pruned)
        self.wanted[closing] = self.score[closing] > config.collapse_threshold
        self.first_reason = np.full(self.score.size, Reason.BELOW_THRESHOLD, np.int8)
        self.first_reason[entries][raw] = Reason.LEAF
        self.first_reason[entries][pruned] = Reason.PRUNED
        for edit in blocked:
            row = self.row_of(edit)
            if row is None:
                continue
            if self.wanted[row] or row >= self.families_at:  # a family may not even pay then
                self.first_reason[row] = Reason.COOLDOWN
            self.wanted[row] = False

    def _leave_alone(self, first: int) -> None:
        """Nothing before entry ``first`` is edited, nor pays."""
        places = np.concatenate([np.arange(self.families_at), self.family.first, self.value.entry])
        early = places < first
        closing = (np.arange(early.size) >= self.families_at) & (np.arange(early.size) < self.targets_at)
        self.first_reason[early & (self.wanted | closing)] = Reason.RECOMPUTE
        self.wanted &= ~early

    def row_of(self, edit: Edit) -> int | None:
        """The row of an entry's expansion or of a family's collapse; None if there is none."""
        if isinstance(edit, Expand):
            return self.window.find(edit.lod, edit.index)
        same = (self.family.lod == edit.lod) & (self.family.index == edit.index)
        found = np.flatnonzero(same)
        return self.families_at + int(found[0]) if found.size else None

    def ranked(self) -> list[Rank]:
        """All wanted rows, unsorted. Ties: collapses, oldest first; then expansions, newest first."""
        rows = np.flatnonzero(self.wanted)
        first = self.window.first_blocks
        age = np.concatenate([first, first[self.family.first], self.value.block])[rows]
        closes = (rows >= self.families_at) & (rows < self.targets_at)
        unit = BLOCK - self.window.vectors
        rate = np.where(closes, 1.0, unit / np.maximum(self.cost[rows], 1)) * self.score[rows]
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
            member = self.member_of[self.entry_of(target)]
            at = place.get(self.families_at + member, -1) if member >= 0 else -1
            if at >= 0 and self.score[target] > self.score[rows[at]]:
                rate[at] = min(rate[at], rate[place[target]])
                late[at] = True
        return late

    def rank(self, row: int, opened: Container[Node]) -> Rank:
        """The rank of a target when some nodes of its path are open already."""
        cost = max(self.path_cost(self.path(row, opened)), 1)
        rate = (BLOCK - self.window.vectors) / cost * float(self.score[row])
        return -rate, True, -int(self.value.block[row - self.targets_at]), row

    def entry_of(self, row: int) -> int:
        """The position of the entry that an entry's or target's row would open first."""
        return int(self.value.entry[row - self.targets_at]) if row >= self.targets_at else row

    def path(self, row: int, opened: Container[Node] = ()) -> list[Node]:
        """The nodes to be opened for an entry's or target's row, top first, without open ones."""
        if row < self.targets_at:
            return [self.nodes[row]]
        block = int(self.value.block[row - self.targets_at])
        top = self.nodes[self.entry_of(row)][0]
        nodes = ((lod, ancestor(block, lod)) for lod in range(top, 0, -1))
        return [node for node in nodes if node not in opened]

    def path_cost(self, path: list[Node]) -> int:
        """What expanding all nodes of a path adds."""
        vectors, size = self.window.vectors, self.window.timeline.family_size
        return sum(BLOCK - vectors if lod == 1 else (size(lod, index) - 1) * vectors for lod, index in path)

    def targets_below(self, node: Node) -> list[int]:
        """Rows of the deep targets in the span of a node (lod >= 1)."""
        lod, index = node
        found = np.flatnonzero(self.value.block // BLOCK ** (lod - 1) == index) + self.targets_at
        rows: list[int] = found.tolist()
        return rows

    def _path_costs(self) -> IntArray:
        block, vectors = self.value.block, self.window.vectors
        cost = np.full(block.size, BLOCK - vectors, np.int64)
        top = self.window.lod[self.value.entry]
        for lod in range(2, int(top.max(initial=1)) + 1):
            level = np.full(block.size, lod, np.int8)
            size = self.window.timeline.family_sizes(level, block // BLOCK ** (lod - 1))
            cost += np.where(lod <= top, (size - 1) * vectors, 0)
        return cost

    def _why_absent(self, block: int) -> Reason:
        timeline = self.window.timeline
        if timeline.holds_denied(1, block):
            return Reason.DENIED
        return Reason.DEAD if timeline.is_dead(1, block) else Reason.PRUNED

    def ledger(self, reasons: list[int], details: dict[int, str], extra: list[Row]) -> Ledger:
        """All rows with their final reasons, rows that came up on the way, the tail, absent targets."""
        window, family, value = self.window, self.family, self.value
        k, raw_cost = value.block.size, BLOCK - window.vectors
        reason, cost = np.array(reasons, np.int8), self.cost.copy()
        # A refused target states the cost of its path, a chosen one that of its own last step.
        cost[self.targets_at :][reason[self.targets_at :] < Reason.BELOW_THRESHOLD] = raw_cost
        main = Ledger(
            np.repeat([True, False, True], [len(window), len(family), k]),
            np.concatenate([window.lod, family.lod, np.ones(k, np.int8)]),
            np.concatenate([window.index, family.index, value.block]),
            self.score,
            cost,
            reason,
            details,
        )
        tail = np.flatnonzero((window.lod == 0) & (window.index >= window.tail_start))
        tail_rows = zip(window.index[tail].tolist(), value.entries[tail].tolist(), strict=True)
        rest: list[Row] = [*extra]
        rest += [(Collapse(1, block), -score, -raw_cost, Reason.TAIL) for block, score in tail_rows]
        rest += [(Expand(1, block), 0.0, raw_cost, self._why_absent(block)) for block in value.absent.tolist()]
        return main + Ledger.of(rest)
