"""Is focus stable? What a long session edits, how long that stays, and what is undone before it has paid.

An edit *pays* when the tokens decoded while it stood are cheaper, all together, than they would have been without it: every
stretch between two refocuses is scored behind the window as it was and behind the same window with the edit undone. Undoing
what has paid is no thrashing: the need has passed.

Shapes: s refocus steps, k tokens of a stretch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megacontext.core import BLOCK, Collapse, Edit, Expand, WorkingContext, apply, inverse
from megacontext.engine.assemble import slots_of
from megacontext.engine.events import Event, MadeRoom, Refocused
from megacontext.engine.reader import BlockReader
from megacontext.errors import BudgetError, EditError
from megacontext.evaluation.items import IntArray
from megacontext.evaluation.scoring import Chunk, Scorer

WITHIN = 8
"""Refocus steps within which a reversal counts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One refocus: the window ``after`` it, its ``edits``, and the timeline's length ``at`` that moment."""

    after: WorkingContext
    edits: tuple[Edit, ...]
    at: int


@dataclass(frozen=True, kw_only=True)
class Reversal:
    """``edit`` was made at step ``made`` and reversed at step ``undone``, by its inverse."""

    edit: Edit
    made: int
    undone: int


@dataclass(kw_only=True)
class Recorder:
    """A listener that keeps what a session's refocuses did; ``forced`` counts edits that the budget enforced between them."""

    steps: list[Step] = field(default_factory=list)
    forced: int = 0

    def __call__(self, event: Event) -> None:
        """Take one event of the session."""
        if isinstance(event, Refocused):
            result = event.result
            self.steps.append(Step(after=result.after, edits=result.plan.edits, at=result.after.timeline.tokens))
        elif isinstance(event, MadeRoom):
            self.forced += len(event.edits)


def reversals(steps: Sequence[Step], within: int = WITHIN) -> list[Reversal]:
    """Edits that a later step reversed, at most ``within`` steps on; an edit is reversed once."""
    found: list[Reversal] = []
    made: dict[Edit, int] = {}
    for number, step in enumerate(steps):
        for edit in step.edits:
            before = made.pop(inverse(edit), None)
            if before is not None and number - before <= within:
                found.append(Reversal(edit=inverse(edit), made=before, undone=number))
            made[edit] = number
    return found


def residencies(steps: Sequence[Step]) -> list[int]:
    """For how many refocus steps each block that was expanded stayed raw; those still raw at the end are left out."""
    stays: list[int] = []
    since: dict[int, int] = {}
    for number, step in enumerate(steps):
        for edit in step.edits:
            if isinstance(edit, Expand) and edit.lod == 1:
                since[edit.index] = number
        raw = set(step.after.index[step.after.lod == 0].tolist())
        for block in [block for block in since if block not in raw]:
            stays.append(number - since.pop(block))
    return stays


def saved(reversal: Reversal, steps: Sequence[Step], ids: IntArray, reader: BlockReader, scorer: Scorer) -> float | None:
    """Nats that an edit saved over all tokens between its step and its reversal; None where it cannot be told alone.

    ``ids`` int64 are the tokens of the whole timeline, by position; ``reader`` reads its blocks.
    """
    total, told = 0.0, False
    for with_it, without in _stretches(reversal, steps, ids, reader):
        try:
            one, other = scorer([with_it, without])
        except BudgetError:  # undoing a collapse takes more slots than the base may have
            continue
        total, told = total + float(other.sum() - one.sum()), True
    return total if told else None


def _stretches(reversal: Reversal, steps: Sequence[Step], ids: IntArray, reader: BlockReader) -> Iterator[tuple[Chunk, Chunk]]:
    for number in range(reversal.made, reversal.undone):
        step = steps[number]
        window = step.after
        try:
            undone = apply(inverse(reversal.edit), _roomy(window))
        except EditError:
            continue
        following = ids[step.at : steps[number + 1].at]
        if len(following):
            opened = ids[window.timeline.blocks * BLOCK : step.at]
            pair = [
                Chunk(context=slots_of(each, reader, opened, gists=True), following=following, start=step.at)
                for each in (window, undone)
            ]
            yield pair[0], pair[1]


def _roomy(window: WorkingContext) -> WorkingContext:
    """The window with a budget that any single edit fits."""
    budget = window.budget + BLOCK * window.vectors * BLOCK
    return WorkingContext(window.timeline, window.lod, window.index, budget, window.recent, window.vectors)


def stability(
    recorder: Recorder, ids: IntArray, reader: BlockReader, scorer: Scorer, *, judged: int = 200, seed: int = 0
) -> dict[str, Any]:
    """The figures of a session, as plain data: swap rate (edits per entry per refocus), residency, reversals and which paid.

    Of many reversals ``judged`` are drawn at random, and the share that did not pay is scaled up. Refocuses without a limit (a
    session's start) are not counted as swaps: ``recorder.steps`` should begin after them.
    """
    steps = recorder.steps
    edits = sum(len(step.edits) for step in steps)
    undone = reversals(steps)
    some = np.random.default_rng(seed).permutation(len(undone))[:judged]
    worth = [saved(undone[at], steps, ids, reader, scorer) for at in np.sort(some).tolist()]
    told = np.array([each for each in worth if each is not None])
    unpaid = float((told <= 0).mean()) if len(told) else None
    stays = residencies(steps)
    entries = float(np.mean([len(step.after) for step in steps])) if steps else 0.0
    return {
        "refocus_steps": len(steps),
        "edits": edits,
        "collapses": sum(isinstance(edit, Collapse) for step in steps for edit in step.edits),
        "forced_edits": recorder.forced,
        "entries": entries,
        "swap_rate": edits / (entries * len(steps)) if steps and entries else None,
        "residency_mean": float(np.mean(stays)) if stays else None,
        "residency_median": float(np.median(stays)) if stays else None,
        "reversed": len(undone) / edits if edits else 0.0,
        "judged": len(told),
        "unpaid_of_reversed": unpaid,
        "reversed_unpaid": (unpaid * len(undone) / edits if unpaid is not None else 0.0) if edits else 0.0,
        "nats_of_reversed_mean": float(told.mean()) if len(told) else None,
    }
