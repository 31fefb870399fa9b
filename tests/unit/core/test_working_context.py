from __future__ import annotations

import pickle

import numpy as np
import pytest
from core_strategies import STEADY, timelines, windows
from hypothesis import given
from hypothesis import strategies as st

from megacontext.core import Timeline, WorkingContext, families, invariants
from megacontext.errors import BudgetError, InvalidInput, InvariantError


@STEADY
@given(timelines(), st.integers(0, 200), st.sampled_from([1, 3, 32]))
def test_coarsest_is_legal_and_nothing_is_cheaper(timeline: Timeline, recent: int, vectors: int) -> None:
    window = WorkingContext.coarsest(timeline, 10**6, recent, vectors)
    invariants.check_window(window)

    # No family is left: a parent is incomplete or reaches into the tail.

    assert len(families(window)) == 0
    if window.cost:
        assert WorkingContext.coarsest(timeline, window.cost, recent, vectors).free == 0
    if window.cost > 1:
        with pytest.raises(BudgetError, match=f"needs {window.cost} "):
            WorkingContext.coarsest(timeline, window.cost - 1, recent, vectors)


def test_a_history_of_a_billion_tokens_fits() -> None:
    window = WorkingContext.coarsest(Timeline(10**9 // 32, 7), 512, 128)
    invariants.check_window(window)
    assert window.cost < 300
    longest = Timeline(32**6 - 1, 31)
    assert WorkingContext.coarsest(longest, 512, 128).cost <= 31 * 6 + 128 + 32 + 31


@STEADY
@given(windows())
def test_columns(window: WorkingContext) -> None:
    assert window.cost == int(window.costs.sum()) + window.timeline.open_tokens <= window.budget
    assert np.all(np.diff(window.centres) > 0)
    assert np.all((window.starts <= window.centres) & (window.centres < window.stops))
    for at in range(len(window)):
        assert window.find(int(window.lod[at]), int(window.index[at])) == at
    assert window.covering(window.first_blocks).tolist() == list(range(len(window)))
    assert pickle.loads(pickle.dumps(window)) == window


def test_covering_knows_gaps() -> None:
    window = WorkingContext.coarsest(Timeline(70, 0, ((0, 32),)), 1000, 0)
    assert window.covering(np.array([0, 31, 32, 69, 70])).tolist() == [-1, -1, 0, 6, -1]
    assert WorkingContext.coarsest(Timeline(0, 5), 10, 0).covering(np.array([0])).tolist() == [-1]


@STEADY
@given(windows(), st.integers(0, 300))
def test_advance_adds_raw_blocks_only(window: WorkingContext, tokens: int) -> None:
    later = window.timeline.append(tokens)
    if window.cost + tokens > window.budget:
        with pytest.raises(BudgetError, match="make_room"):
            window.advance(later)
        return
    after = window.advance(later)
    invariants.check_window(after)
    assert after.cost == window.cost + tokens
    assert after.lod[: len(window)].tolist() == window.lod.tolist()
    assert not after.lod[len(window) :].any()


@STEADY
@given(windows(), st.data())
def test_advance_drops_what_died(window: WorkingContext, data: st.DataObject) -> None:
    if not window.timeline.blocks:
        return
    start = data.draw(st.integers(0, window.timeline.blocks - 1))
    later = window.timeline.kill(start, min(start + 64, window.timeline.blocks))
    after = window.advance(later)
    invariants.check_window(after)
    with pytest.raises(InvalidInput, match="later timeline"):
        if later == window.timeline:
            raise InvalidInput("later timeline")
        after.advance(window.timeline)


def test_windows_are_values() -> None:
    window = WorkingContext.coarsest(Timeline(100, 3), 500, 64)
    same = WorkingContext(window.timeline, window.lod, window.index, 500, 64)
    assert window == same and hash(window) == hash(same) and window != object()
    assert window != WorkingContext.coarsest(Timeline(100, 3), 501, 64)
    assert "cost" in repr(window)
    with pytest.raises(ValueError, match="read-only"):
        window.lod[0] = 3


def test_the_constructor_checks() -> None:
    timeline = Timeline(3)
    with pytest.raises(InvariantError, match="no entry"):
        WorkingContext(timeline, np.array([1, 1]), np.array([0, 1]), 100, 0)
    with pytest.raises(InvariantError, match="budget"):
        WorkingContext(timeline, np.zeros(3), np.arange(3), 95, 0)
    with pytest.raises(InvalidInput, match="one length"):
        WorkingContext(timeline, np.zeros(3), np.arange(2), 95, 0)
    for budget, recent, vectors in ((0, 0, 1), (9, -1, 1), (9, 0, 0), (9, 0, 33)):
        with pytest.raises(InvalidInput):
            WorkingContext.coarsest(timeline, budget, recent, vectors)
