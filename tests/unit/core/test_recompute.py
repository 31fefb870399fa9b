"""The price of reading again: early edits wait until they are worth it, late ones are cheap, room comes first."""

from __future__ import annotations

import numpy as np
import pytest
from core_strategies import STEADY, scores_for, windows
from hypothesis import given
from hypothesis import strategies as st

from megacontext.core import (
    AllocatorConfig,
    Expand,
    FocusScores,
    GreedyAllocator,
    Plan,
    SuffixCost,
    Timeline,
    WorkingContext,
    apply_all,
    invariants,
    node_blocks,
)
from megacontext.errors import ConfigError

ROOM = "makes room"


def gists(count: int, budget: int) -> WorkingContext:
    """``count`` gists of single blocks and one raw block behind them."""
    lods = np.array([1] * count + [0])
    return WorkingContext(Timeline(count + 1), lods, np.arange(count + 1), budget, 32)


def plan(window: WorkingContext, gains: dict[int, float], price: float) -> Plan:
    entries = np.zeros(len(window))
    entries[list(gains)] = list(gains.values())
    config = AllocatorConfig(expand_threshold=0.0, reserve=0, recompute=SuffixCost(price=price))
    return GreedyAllocator(config).plan(window, FocusScores(entries))


@STEADY
@given(windows(), st.integers(0, 99), st.sampled_from([0, 3, 12]), st.sampled_from([0.0, 1e-4, 1e-3, 1e-2, 1e9]))
def test_plans_stay_legal_and_touch_nothing_before_the_first_edit(
    window: WorkingContext, seed: int, targets: int, price: float
) -> None:
    scores, cost = scores_for(window, seed, targets), SuffixCost(price=price)
    free = GreedyAllocator(AllocatorConfig(reserve=seed)).plan(window, scores)
    priced = GreedyAllocator(AllocatorConfig(reserve=seed, recompute=cost)).plan(window, scores)
    after = apply_all(priced.edits, window)
    invariants.check_window(after)
    assert after.cost == priced.cost
    assert tuple(d.edit for d in priced.decisions if d.chosen) == priced.edits
    wanted = [d for d in priced.decisions if d.chosen and ROOM not in d.reason]
    first = cost.first(window, free)
    edge = int(window.first_blocks[first]) if first < len(window) else window.timeline.blocks
    assert all(node_blocks(d.edit.lod, d.edit.index)[0] >= edge for d in wanted)
    if price > 1e6 and not any(ROOM in d.reason for d in free.decisions):
        assert not priced.edits


def test_an_early_edit_waits_for_company_and_a_late_one_does_not() -> None:
    window = gists(10, 400)
    assert SuffixCost(price=1).tokens(window).tolist() == [64] * 10 + [32, 0]
    late = plan(window, {9: 0.5}, price=0.5 / 65)
    assert late.edits == (Expand(1, 9),)
    assert not plan(window, {9: 0.5}, price=0.5 / 63).edits


def test_raw_blocks_behind_an_edit_make_it_dear() -> None:
    window = apply_all((Expand(1, 6), Expand(1, 7)), gists(10, 400))
    tokens = SuffixCost(price=1).tokens(window)
    assert tokens[2] == 32 * 4 and tokens[8] == 32 * 2
    price = 0.004  # 0.256 for a late edit, 0.512 for an early one
    mixed = plan(window, {2: 0.2, 8: 0.3}, price)
    assert mixed.edits == (Expand(1, 8),)
    assert "not worth reading again" in {d.edit: d.reason for d in mixed.decisions}[Expand(1, 2)]
    # Together, two early ones are worth more than what one of them would cost.
    assert not plan(window, {1: 0.3}, price).edits
    assert set(plan(window, {1: 0.3, 2: 0.3}, price).edits) == {Expand(1, 1), Expand(1, 2)}


def test_a_price_below_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="price"):
        SuffixCost(price=-1)
