"""What an allocator returns: edits in the order to apply them, and a reason for everything else.

A window has about a thousand candidates and a plan a handful of edits, so decisions are kept as
columns (``Ledger``) and become objects only when somebody asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Protocol

import numpy as np

from megacontext.core.allocator.history import EditHistory
from megacontext.core.allocator.scores import FocusScores
from megacontext.core.edits import Collapse, Edit, Expand
from megacontext.core.node import BoolArray, FloatArray, IntArray, LodArray
from megacontext.core.working_context import WorkingContext


class Reason(IntEnum):
    """Why an edit was chosen (first group) or refused; ``text`` is the sentence."""

    SCORE = 0
    PATH = 1
    PAYS = 2
    ROOM = 3
    OPTIMAL = 4
    BELOW_THRESHOLD = 10
    COOLDOWN = 11
    OVER_BUDGET = 12
    NO_BETTER = 13
    EDIT_LIMIT = 14
    TAIL = 15
    LEAF = 16
    CONFLICT = 17
    DEAD = 18
    NOT_OPTIMAL = 19
    DENIED = 20
    PRUNED = 21
    RECOMPUTE = 22

    @property
    def chosen(self) -> bool:
        """Whether the edit is in the plan."""
        return self < Reason.BELOW_THRESHOLD

    @property
    def text(self) -> str:
        """The reason in words."""
        return _TEXTS[self]


_TEXTS = {
    Reason.SCORE: "best score",
    Reason.PATH: "on the path down to a target block",
    Reason.PAYS: "pays for an expansion that scores higher",
    Reason.ROOM: "makes room for the next tokens",
    Reason.OPTIMAL: "part of the best window that the budget allows",
    Reason.BELOW_THRESHOLD: "below threshold",
    Reason.COOLDOWN: "cooldown: it would reverse a recent edit",
    Reason.OVER_BUDGET: "over budget: too little is left to collapse",
    Reason.NO_BETTER: "no better path: what would have to collapse is worth as much",
    Reason.EDIT_LIMIT: "edit limit of this refocus reached",
    Reason.TAIL: "protected tail",
    Reason.LEAF: "cannot expand further: raw already",
    Reason.CONFLICT: "another edit of this plan changes the same entries",
    Reason.DEAD: "the block is dead",
    Reason.DENIED: "the block is denied to this reader",
    Reason.PRUNED: "its raw tokens are pruned; megacontext restore brings them back",
    Reason.RECOMPUTE: "early in the window: not worth reading again what lies behind it yet",
    Reason.NOT_OPTIMAL: "not part of the best window that the budget allows",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """One edit that was considered.

    score is in the policy's unit, positive in favour of the edit; cost is what the edit adds to the
    window (negative frees). For a refused target the cost is that of its whole path of expansions;
    for a chosen edit always its own, so the costs of chosen decisions sum to the plan's.
    """

    edit: Edit
    score: float
    cost: int
    chosen: bool
    reason: str


@dataclass(frozen=True, eq=False)
class Ledger:
    """Decisions as columns: rows of one length m, plus details in words for a few of them."""

    opens: BoolArray
    lod: LodArray
    index: IntArray
    score: FloatArray
    cost: IntArray
    reason: LodArray
    details: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[tuple[Edit, float, int, Reason]]) -> Ledger:
        """A ledger from a few rows of (edit, score, cost, reason)."""
        return cls(
            np.array([isinstance(edit, Expand) for edit, *_ in rows], np.bool_),
            np.array([edit.lod for edit, *_ in rows], np.int8),
            np.array([edit.index for edit, *_ in rows], np.int64),
            np.array([row[1] for row in rows], np.float64),
            np.array([row[2] for row in rows], np.int64),
            np.array([row[3] for row in rows], np.int8),
        )

    def only(self, keep: BoolArray) -> Ledger:
        """The rows of a mask bool[m]."""
        new = np.cumsum(keep) - 1
        return Ledger(
            self.opens[keep],
            self.lod[keep],
            self.index[keep],
            self.score[keep],
            self.cost[keep],
            self.reason[keep],
            {int(new[row]): text for row, text in self.details.items() if keep[row]},
        )

    def chosen(self) -> Ledger:
        """The rows that are in the plan."""
        return self.only(self.reason < Reason.BELOW_THRESHOLD)

    def __add__(self, other: Ledger) -> Ledger:
        """Both, one after the other."""
        size = self.lod.size
        return Ledger(
            np.concatenate([self.opens, other.opens]),
            np.concatenate([self.lod, other.lod]),
            np.concatenate([self.index, other.index]),
            np.concatenate([self.score, other.score]),
            np.concatenate([self.cost, other.cost]),
            np.concatenate([self.reason, other.reason]),
            {**self.details, **{size + row: text for row, text in other.details.items()}},
        )

    def decisions(self) -> tuple[Decision, ...]:
        """All rows as objects, the strongest first."""
        order = np.argsort(-np.abs(self.score), kind="stable").tolist()
        columns = (self.opens, self.lod, self.index, self.score, self.cost, self.reason)
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        found = []
        for at in order:
            opens, lod, index, score, cost, code = rows[at]
            edit = Expand(lod, index) if opens else Collapse(lod, index)
            reason = Reason(code)
            detail = f" ({self.details[at]})" if at in self.details else ""
            found.append(Decision(edit, score, cost, reason.chosen, reason.text + detail))
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Plan:
    """Edits in the order to apply them (each legal in its turn), the cost after them, the reasons.

    cost is the window's cost after the plan.
    """

    edits: tuple[Edit, ...]
    cost: int
    ledger: Ledger

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """All that was considered: chosen edits in the plan's order, then the strongest."""
        every = self.ledger.decisions()
        place = {edit: number for number, edit in enumerate(self.edits)}
        chosen = sorted((d for d in every if d.chosen), key=lambda d: place[d.edit])
        return (*chosen, *(d for d in every if not d.chosen))


class Allocator(Protocol):
    """Anything that plans edits. Plans do not change the window; ``apply_all`` does."""

    def plan(self, window: WorkingContext, scores: FocusScores, history: EditHistory | None = None) -> Plan:
        """Plan one refocus.

        Args:
            window: the working context as it is.
            scores: a policy's opinion on exactly this window.
            history: what recent steps did; None for a first step.

        Raises:
            InvalidInput: if the scores do not belong to the window.
        """
        ...
