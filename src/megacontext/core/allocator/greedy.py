"""The greedy allocator: best first, collapses pay for expansions, every refusal has a reason.

Scores: positive opens, negative closes (see ``scores``). Candidates are gists above the expand
threshold, families below minus the collapse threshold, and targets below high-level gists, which need
a path of expansions. They are ranked by gain per cost, in units of opening one block, so that among
equal costs the score decides. An expansion that does not fit may be paid by collapsing the families
that are worth least, as long as they are worth less than it gains.
"""

from __future__ import annotations

import heapq

import numpy as np

from megacontext.core.allocator.candidates import Candidates, Row
from megacontext.core.allocator.config import AllocatorConfig
from megacontext.core.allocator.history import EditHistory
from megacontext.core.allocator.plan import Ledger, Plan, Reason
from megacontext.core.allocator.room import carry, cheapest_collapses, collapse_until
from megacontext.core.allocator.scores import FocusScores, worth
from megacontext.core.edits import Collapse, Edit, Expand, apply_all, inverse
from megacontext.core.node import Node, parent
from megacontext.core.working_context import WorkingContext

_DEEP_TRIALS = 3  # candidates that may look for payers over several levels, in one refocus
_TOO_DEAR = (Reason.OVER_BUDGET, Reason.NO_BETTER, Reason.EDIT_LIMIT)


class GreedyAllocator:
    """Plans by score; see the module for the rules and ``AllocatorConfig`` for the knobs."""

    def __init__(self, config: AllocatorConfig | None = None) -> None:
        self.config = config or AllocatorConfig()

    def plan(self, window: WorkingContext, scores: FocusScores, history: EditHistory | None = None) -> Plan:
        """Plan one refocus; see ``Allocator.plan``.

        Edits that keep the reserve come first. If the budget cannot hold the reserve even then, the
        plan does what it can and expands nothing.
        """
        plan = self._plan(window, scores, history)
        if self.config.recompute is None or not plan.edits:
            return plan
        first = self.config.recompute.first(window, plan)
        return self._plan(window, scores, history, first) if first else plan

    def _plan(self, window: WorkingContext, scores: FocusScores, history: EditHistory | None, first: int = 0) -> Plan:
        """``plan`` that edits nothing before entry ``first``, but for room."""
        scores.check(window)
        since = int(window.first_blocks[first]) if first < len(window) else window.timeline.blocks
        blocked = (history or EditHistory()).blocked(self.config.cooldown)
        room = collapse_until(window, self.config.reserve, worth(window, scores).entries)
        edits, ledger, left = list(room.edits), room.ledger, self.config.max_edits
        done: tuple[Edit, ...] = room.edits
        while True:
            if done:
                window, scores = _edited(window, scores, done)
                blocked |= {inverse(edit) for edit in done}
            left_alone = int(np.searchsorted(window.first_blocks, since)) if first else 0
            step = _Refocus(window, scores, blocked, self.config, left, left_alone)
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


class _Refocus:
    """One pass of the greedy rules over the candidates of one window, and what it has taken so far."""

    def __init__(
        self,
        window: WorkingContext,
        scores: FocusScores,
        blocked: frozenset[Edit],
        config: AllocatorConfig,
        left: int | None,
        first: int = 0,
    ) -> None:
        self.rows = Candidates(window, scores, blocked, config, first)
        self.blocked, self.max_edits, self.left = blocked, config.max_edits, left
        self.limit = window.budget - config.reserve  # what the cost may not exceed
        self.reserve, self.margin = config.reserve, config.swap_margin
        self.cost = window.cost
        self.edits: list[Edit] = []
        self.reason: list[int] = self.rows.first_reason.tolist()
        self.gain: list[float] = self.rows.score.tolist()
        self.costs: list[int] = self.rows.cost.tolist()
        closing = self.rows.first_reason[self.rows.families_at : self.rows.targets_at]
        self.family_open: list[bool] = ((closing != Reason.COOLDOWN) & (closing != Reason.RECOMPUTE)).tolist()
        self.payers = [at for at in self.rows.payers if self.family_open[at]]
        self.payable = sum(self.rows.saving[at] for at in self.payers)
        self.opened: set[Node] = set()
        self.details: dict[int, str] = {}
        self.extra: list[Row] = []  # chosen edits on nodes that no row stands for

    def run(self) -> None:
        """Take candidates, best first, until none or no edit is left."""
        heap = self.rows.ranked()
        heapq.heapify(heap)
        while heap and self.left != 0:
            row = heapq.heappop(heap)[-1]
            if self.reason[row] != Reason.BELOW_THRESHOLD:
                continue  # settled: opened on another's path, or an older rank of the same target
            if self.rows.families_at <= row < self.rows.targets_at:
                self._close_family(row - self.rows.families_at)
            elif row < self.rows.families_at and (refusal := self._hopeless(row)):
                self.reason[row] = refusal
            else:
                for other in self._open(row):
                    heapq.heappush(heap, self.rows.rank(other, self.opened))
        for *_, row in heap:
            if self.reason[row] == Reason.BELOW_THRESHOLD:
                self.reason[row] = Reason.EDIT_LIMIT
        if not self.edits and self.left != 0:
            self._pay_deep()

    def ledger(self) -> Ledger:
        """Everything that was considered, with its final reason."""
        return self.rows.ledger(self.reason, self.details, self.extra)

    def _hopeless(self, row: int) -> Reason | None:
        """Why an entry cannot be paid for at all: a quick look that spares most of a full window."""
        need = self.cost + self.costs[row] - self.limit
        if need <= 0:
            return None
        if need > self.payable:
            return Reason.OVER_BUDGET
        while not self.family_open[self.payers[0]]:
            self.payers.pop(0)
        return Reason.NO_BETTER if self.rows.price[self.payers[0]] >= self.gain[row] - self.margin else None

    def _close_family(self, at: int) -> None:
        if self.family_open[at]:
            self._collapse(at, Reason.SCORE)
        else:
            self.reason[self.rows.families_at + at] = Reason.CONFLICT

    def _open(self, row: int) -> list[int]:
        """Open an entry or the path to a target if it is allowed, fits or is paid for.

        Returns the targets that have to be ranked anew, since they share the path just opened.
        """
        entry, path, gain = self.rows.entry_of(row), self.rows.path(row, self.opened), self.gain[row]
        member = self.rows.member_of[entry]
        if member >= 0 and self.reason[self.rows.families_at + member] < Reason.BELOW_THRESHOLD:
            self.reason[row] = Reason.CONFLICT
            return []
        if self.blocked and any(Expand(*node) in self.blocked for node in path):
            self.reason[row] = Reason.COOLDOWN
            return []
        payers = self._payers(self.rows.path_cost(path), gain, member)
        if isinstance(payers, Reason):
            self.reason[row] = payers
            return []
        if self.left is not None and len(path) + len(payers) > self.left:
            path, payers = self._part_of(path, gain, member)
            if not path and not payers:
                self.reason[row] = Reason.EDIT_LIMIT
                return []
        for at in payers:
            self._collapse(at, Reason.PAYS)
        self._expand(row, path)
        return self._cheaper(path[0]) if row >= self.rows.targets_at and path else []

    def _payers(self, cost: int, gain: float, member: int) -> list[int] | Reason:
        """The families to collapse so that ``cost`` fits, in sum worth less than ``gain`` by the margin."""
        need = self.cost + cost - self.limit
        if need <= 0 or cost == 0:
            return []
        price, saving = self.rows.price, self.rows.saving
        taken: list[int] = []
        total = 0.0
        for at in self.payers:
            if not self.family_open[at] or at == member:
                continue
            total += max(price[at], 0.0)
            if total >= gain - self.margin:
                return Reason.NO_BETTER
            taken.append(at)
            need -= saving[at]
            if need <= 0:
                break
        else:
            return Reason.OVER_BUDGET
        for at in reversed(taken[:-1]):  # a large one taken late can make small ones superfluous
            if need + saving[at] <= 0:
                need += saving[at]
                taken.remove(at)
        return taken

    def _part_of(self, path: list[Node], gain: float, member: int) -> tuple[list[Node], list[int]]:
        """The first steps of a path that no single refocus could finish; the next one goes on.

        Only for the best candidate of a refocus: a path that merely came too late waits instead. If
        the limit is too low for even one step and its payers, the payers go ahead.
        """
        if self.left is None or self.left != self.max_edits:
            return [], []
        first: list[int] = []
        for steps in range(len(path), 0, -1):
            payers = self._payers(self.rows.path_cost(path[:steps]), gain, member)
            first = [] if isinstance(payers, Reason) else payers
            if not isinstance(payers, Reason) and steps + len(payers) <= self.left:
                return path[:steps], payers
        return [], first[: self.left]

    def _cheaper(self, node: Node) -> list[int]:
        """Targets below a node just opened that are still to be had; too dear ones get another chance."""
        below = self.rows.targets_below(node)
        for row in below:
            if self.reason[row] in _TOO_DEAR:
                self.reason[row] = Reason.BELOW_THRESHOLD
        unsettled = (row for row in below if self.reason[row] == Reason.BELOW_THRESHOLD)
        return [row for row in unsettled if self.rows.wanted[row]]

    def _pay_deep(self) -> None:
        """Pay for a candidate that was over budget with collapses over several levels.

        Only when nothing else could be done: few families are whole while members of them are open, so
        a full window may have too few left to pay for a long path, and deeper ones once those closed.
        """
        short = [row for *_, row in sorted(self.rows.ranked()) if self.reason[row] == Reason.OVER_BUDGET]
        for row in short[:_DEEP_TRIALS]:
            entry, path = self.rows.entry_of(row), self.rows.path(row)
            payers = self._deep_payers(entry, path)
            if payers is None:
                continue
            if sum(max(value, 0.0) for _, value, _ in payers) >= self.gain[row] - self.margin:
                self.reason[row] = Reason.NO_BETTER
                continue
            while path and self.left is not None and len(path) + len(payers) > self.left:
                path = path[:-1]
                payers = (self._deep_payers(entry, path) or payers) if path else payers
            for node, value, saving in payers[: self.left]:
                self._collapse_any(node, value, saving)
            self._expand(row, path)
            return

    def _deep_payers(self, entry: int, path: list[Node]) -> list[tuple[Node, float, int]] | None:
        """Collapses of any depth, around an entry, that let a path fit; None if they do not suffice."""
        window, cost = self.rows.window, self.rows.path_cost(path)
        barred = {(edit.lod, edit.index) for edit in self.blocked if isinstance(edit, Collapse)}
        barred.add(parent(*self.rows.nodes[entry]))
        family = self.rows.family
        shut = self.rows.first_reason[self.rows.families_at : self.rows.targets_at] == Reason.RECOMPUTE
        barred |= set(zip(family.lod[shut].tolist(), family.index[shut].tolist(), strict=True))
        values = self.rows.value.entries
        payers = cheapest_collapses(window, cost + self.reserve, values, frozenset(barred))
        freed = sum(saving for *_, saving in payers)
        return payers if self.cost + cost - freed <= self.limit else None

    def _expand(self, row: int, path: list[Node]) -> None:
        entry, whole = self.rows.entry_of(row), self.rows.path(row, self.opened)
        member = self.rows.member_of[entry]
        if member >= 0:
            self._settle(member)
        for node in path:
            cost = self.rows.path_cost([node])
            self._take(Expand(*node), cost)
            self.opened.add(node)
            if node == whole[-1]:
                self.reason[row] = Reason.SCORE
            elif node == self.rows.nodes[entry]:
                self.reason[entry] = Reason.PATH
            else:
                self.extra.append((Expand(*node), self.gain[row], cost, Reason.PATH))
        if len(path) < len(whole):
            self.reason[row] = Reason.EDIT_LIMIT
            self.details[row] = f"{len(path)} of {len(whole)} steps taken, the next refocus goes on"
        elif len(whole) > 1:
            total = self.rows.path_cost(whole)
            self.details[row] = f"a path of {len(whole)} expansions that costs {total}"

    def _collapse(self, at: int, reason: Reason) -> None:
        self.reason[self.rows.families_at + at] = reason
        self._settle(at)
        family = self.rows.family
        self._take(Collapse(int(family.lod[at]), int(family.index[at])), -self.rows.saving[at])

    def _settle(self, at: int) -> None:
        """A family is collapsed or opened further: it cannot pay any more."""
        if self.family_open[at]:
            self.family_open[at] = False
            self.payable -= self.rows.saving[at]

    def _collapse_any(self, node: Node, value: float, saving: int) -> None:
        edit = Collapse(*node)
        row = self.rows.row_of(edit)
        if row is not None:
            self._collapse(row - self.rows.families_at, Reason.PAYS)
            return
        self._take(edit, -saving)
        self.extra.append((edit, -value, -saving, Reason.PAYS))

    def _take(self, edit: Edit, cost: int) -> None:
        self.edits.append(edit)
        self.cost += cost
        if self.left is not None:
            self.left -= 1
