from __future__ import annotations

import numpy as np
from core_strategies import STEADY
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.core import (
    Timeline,
    WorkingContext,
    apply,
    invariants,
    legal_edits,
    legal_windows,
    substitution_patterns,
)


@settings(STEADY, max_examples=12)
@given(st.integers(0, 36), st.integers(0, 31), st.integers(0, 130), st.integers(0, 70), st.booleans(), st.booleans())
def test_all_windows_are_those_that_edits_reach(
    blocks: int, open_tokens: int, slack: int, recent: int, denied: bool, pruned: bool
) -> None:
    timeline = Timeline(blocks, open_tokens, ((2, 27),) if blocks > 30 else ())
    if denied and blocks > 30:
        timeline = timeline.deny([(20, 28)])
    if pruned and blocks > 29:
        timeline = timeline.prune([(27, 30)])
    least = WorkingContext.coarsest(timeline, 10**6, recent).cost
    budget = max(1, least + slack)
    found = list(legal_windows(timeline, budget, recent))
    for window in found:
        invariants.check_window(window)
    start = WorkingContext.coarsest(timeline, budget, recent)
    reached, frontier = {start}, [start]
    while frontier and len(reached) < 600:
        window = frontier.pop()
        new = {apply(edit, window) for edit in legal_edits(window)} - reached
        reached |= new
        frontier += new
    if not frontier:
        assert set(found) == reached
    assert len(set(found)) == len(found)


def test_no_window_fits_a_budget_below_the_minimum() -> None:
    assert list(legal_windows(Timeline(3), 2, 0)) == []
    assert len(list(legal_windows(Timeline(3), 96, 0))) == 8


def test_substitution_patterns() -> None:
    patterns = list(substitution_patterns((5, 8)))
    assert len(patterns) == 8 == len({p.tobytes() for p in patterns})
    assert patterns[0].tolist() == [0, 0, 0] and patterns[-1].tolist() == [1, 1, 1]
    assert patterns[0].dtype == np.int8
