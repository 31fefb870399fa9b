from __future__ import annotations

import numpy as np
import pytest
from core_strategies import STEADY, scores_for, windows
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megacontext.core import (
    AllocatorConfig,
    Collapse,
    ExactAllocator,
    ExactConfig,
    Expand,
    FocusScores,
    GreedyAllocator,
    Targets,
    Timeline,
    WorkingContext,
    apply,
    apply_all,
    invariants,
    legal_edits,
    legal_windows,
    objective,
)

EXACT = ExactAllocator(ExactConfig(reserve=0))


@settings(STEADY, max_examples=60)
@given(st.integers(1, 40), st.integers(0, 130), st.integers(0, 999), st.sampled_from([1, 3]), st.data())
def test_no_legal_window_is_better(blocks: int, slack: int, seed: int, vectors: int, data: st.DataObject) -> None:
    # Most of a LOD2 node is dead, so that all of its windows can be listed.
    timeline = Timeline(blocks, 3, ((2, 28),) if blocks > 30 else ())
    if data.draw(st.booleans()):
        timeline = timeline.deny([(min(blocks - 1, 27), min(blocks, 30))])
    least = WorkingContext.coarsest(timeline, 10**6, 32, vectors).cost
    window = WorkingContext.coarsest(timeline, least + slack, 32, vectors)
    for _ in range(data.draw(st.integers(0, 4))):
        if legal := legal_edits(window):
            window = apply(data.draw(st.sampled_from(legal)), window)
    every = []
    for other in legal_windows(timeline, window.budget, window.recent, vectors):
        every.append(other)
        assume(len(every) < 3000)
    scores = scores_for(window, seed, targets=3)
    plan = EXACT.plan(window, scores)
    after = apply_all(plan.edits, window)
    best = max(objective(window, other, scores) for other in every)
    assert objective(window, after, scores) == pytest.approx(best, abs=1e-6)
    assert plan.cost == after.cost
    greedy = GreedyAllocator(AllocatorConfig(max_edits=None, reserve=0)).plan(window, scores)
    assert objective(window, apply_all(greedy.edits, window), scores) <= best + 1e-6


@settings(STEADY, max_examples=30)
@given(windows(), st.integers(0, 99))
def test_plans_are_legal_and_explained(window: WorkingContext, seed: int) -> None:
    scores = scores_for(window, seed, targets=4)
    plan = ExactAllocator().plan(window, scores)
    after = apply_all(plan.edits, window)
    invariants.check_window(after)
    chosen = [d for d in plan.decisions if d.chosen]
    assert tuple(d.edit for d in chosen) == plan.edits
    assert sum(d.score for d in chosen) == pytest.approx(objective(window, after, scores), abs=1e-6)
    least = WorkingContext.coarsest(window.timeline, 10**6, window.recent, window.vectors).cost
    assert after.cost <= max(window.budget - 32, least)


def test_it_beats_greed_where_a_long_path_is_worth_two_blocks() -> None:
    window = WorkingContext.coarsest(Timeline(34), 34 + 31, 0)
    scores = FocusScores([0.0, 0.5, 0.0], Targets([3], [0.9]))
    assert EXACT.plan(window, scores).edits == (Expand(2, 0), Expand(1, 3))
    assert objective(window, window, scores) == 0.0


def test_equal_sums_leave_the_window_alone() -> None:
    window = WorkingContext(Timeline(4), np.array([0, 1, 0, 1]), np.arange(4), 99, 0)
    assert EXACT.plan(window, FocusScores.zeros(window)).edits == ()
    plan = EXACT.plan(window, FocusScores([-0.1, 0.0, 0.0, 0.0]))
    assert plan.edits == (Collapse(1, 0),)
    assert {d.reason for d in plan.decisions if not d.chosen} == {
        "not part of the best window that the budget allows",
        "cannot expand further: raw already",
    }
