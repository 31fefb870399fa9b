from __future__ import annotations

import numpy as np
import pytest
from core_strategies import STEADY, scores_for, windows
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.core import (
    Collapse,
    Expand,
    FocusScores,
    Timeline,
    WorkingContext,
    advance_within_budget,
    apply_all,
    invariants,
    make_room,
)
from megacontext.errors import BudgetError, InvalidInput


@STEADY
@given(windows(), st.integers(0, 400), st.booleans())
def test_room_is_made_or_truly_impossible(window: WorkingContext, tokens: int, scored: bool) -> None:
    scores = scores_for(window, 3) if scored else None
    least = WorkingContext.coarsest(window.timeline, 10**6, window.recent, window.vectors).cost
    if least + tokens > window.budget:
        with pytest.raises(BudgetError, match=f"{least} of {window.budget}"):
            make_room(window, tokens, scores)
        return
    plan = make_room(window, tokens, scores)
    after = apply_all(plan.edits, window)
    invariants.check_window(after)
    assert after.cost == plan.cost and after.free >= tokens
    assert bool(plan.edits) is (window.free < tokens)
    assert all(isinstance(edit, Collapse) for edit in plan.edits)
    after.advance(window.timeline.append(tokens))


def raw_window(blocks: int, budget: int, recent: int = 32) -> WorkingContext:
    return WorkingContext(Timeline(blocks), np.zeros(blocks), np.arange(blocks), budget, recent)


def test_without_scores_the_oldest_raw_blocks_go_first() -> None:
    plan = make_room(raw_window(10, 320), 40)
    assert plan.edits == (Collapse(1, 0), Collapse(1, 1))
    assert all("makes room" in d.reason and d.chosen for d in plan.decisions)


def test_with_scores_the_least_valuable_go_first() -> None:
    values = np.array([0.9, 0.1, 0.5, -0.3, 0.2, 0, 0, 0, 0, 1.0])
    plan = make_room(raw_window(10, 320), 60, FocusScores(values))
    assert plan.edits == (Collapse(1, 3), Collapse(1, 5))


def test_it_goes_as_deep_as_necessary() -> None:
    window = WorkingContext.coarsest(Timeline(32 * 32), 200, 0)
    opened = apply_all([Expand(3, 0), Expand(2, 7), Expand(2, 9), Expand(1, 300)], window)
    plan = make_room(opened, 199)
    assert plan.edits[0] == Collapse(1, 300) and plan.edits[-1] == Collapse(3, 0)
    assert apply_all(plan.edits, opened) == window
    with pytest.raises(BudgetError, match="raise the budget"):
        make_room(opened, 200)


def test_a_single_live_child_frees_nothing_but_opens_the_way() -> None:
    timeline = Timeline(1024, 0, ((0, 991), (992, 1023)))  # live: blocks 991 and 1023
    window = WorkingContext.coarsest(timeline, 2, 0)
    opened = apply_all([Expand(3, 0), Expand(2, 30), Expand(2, 31)], window)
    assert len(opened) == 2
    assert apply_all(make_room(opened, 1).edits, opened) == window


@settings(STEADY, max_examples=20)
@given(windows(edits=4), st.lists(st.integers(1, 5000), max_size=3), st.booleans())
def test_a_session_follows_any_growth_within_its_budget(window: WorkingContext, appends: list[int], scored: bool) -> None:
    window = WorkingContext(
        window.timeline,
        window.lod,
        window.index,
        window.budget + 500 * window.vectors,
        window.recent,
        window.vectors,
    )
    for tokens in appends:
        later = window.timeline.append(tokens)
        after, edits = advance_within_budget(window, later, scores_for(window, 5) if scored else None)
        invariants.check_window(after)
        assert after.timeline == later and after.cost <= after.budget
        assert edits or window.cost + tokens <= window.budget
        window = after


def test_a_billion_tokens_of_generation_stay_in_budget() -> None:
    window = WorkingContext.coarsest(Timeline(10**9 // 32), 600, 128)
    for _ in range(40):
        later = window.timeline.append(500)
        window, _ = advance_within_budget(window, later)
        invariants.check_window(window)


def test_token_by_token_equals_the_budget_at_the_worst() -> None:
    window = WorkingContext.coarsest(Timeline(3), 300, 64)
    for _ in range(3000):
        if not window.free:
            window = apply_all(make_room(window, 1).edits, window)
        window = window.advance(window.timeline.append(1))
        assert window.cost <= 300
    invariants.check_window(window)


def test_deaths_and_growth_together() -> None:
    window = WorkingContext.coarsest(Timeline(100, 5), 400, 64)
    later = window.timeline.append(900).kill(10, 40)
    after, _ = advance_within_budget(window, later, FocusScores.zeros(window))
    invariants.check_window(after)
    with pytest.raises(InvalidInput):
        advance_within_budget(after, window.timeline)


def test_impossible_growth_says_so() -> None:
    window = WorkingContext.coarsest(Timeline(4), 130, 128)
    with pytest.raises(BudgetError, match="do not fit"):
        advance_within_budget(window, window.timeline.append(40))
