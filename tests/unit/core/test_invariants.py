"""Each invariant accepts what is right and names what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from core_strategies import STEADY, windows
from hypothesis import given

from megacontext.core import Timeline, WorkingContext, invariants
from megacontext.errors import InvariantError


def window(lod: list[int], index: list[int], timeline: Timeline, budget: int = 999, recent: int = 0) -> WorkingContext:
    return WorkingContext.trusted(timeline, np.array(lod, np.int8), np.array(index, np.int64), budget, recent)


FOUR = Timeline(4)


@pytest.mark.parametrize(
    ("check", "broken", "message"),
    [
        (invariants.budget, window([0, 0, 0, 0], [0, 1, 2, 3], FOUR, 100), r"entry 3 = \(0, 3\)"),
        (invariants.budget, window([], [], Timeline(0, 9), 5), "unfinished block"),
        (invariants.tiling, window([1, 1, 1], [0, 1, 3], FOUR), r"\[2, 3\).*before entry 2"),
        (invariants.tiling, window([1, 1, 1], [0, 1, 2], FOUR), r"\[3, 4\).*at the end"),
        (invariants.tiling, window([1, 1, 1, 1], [0, 2, 1, 3], FOUR), "out of order: entry 2"),
        (invariants.tiling, window([2, 1], [0, 3], Timeline(32)), "overlaps.*entry 1"),
        (invariants.tiling, window([1, 0, 1, 1, 1], [0, 0, 1, 2, 3], FOUR), "order: entry 1"),
        (invariants.tiling, window([1] * 4, [0, 1, 2, 3], FOUR.kill(1, 2)), "dead: entry 1"),
        (invariants.allowed, window([1, 0], [0, 1], Timeline(2).deny([(1, 2)])), "holds denied blocks: entry 1"),
        (invariants.check_window, window([2], [0], Timeline(32).deny([(7, 8)])), "holds denied blocks: entry 0"),
        (invariants.check_window, window([2], [0], Timeline(32).deny([(7, 8)]).kill(7, 8)), "holds denied"),
        (invariants.check_window, window([1], [0], Timeline(3).deny([(1, 2)])), r"\[1, 3\).*at the end"),
        (invariants.alignment, window([2], [0], FOUR), r"not complete yet: entry 0 = \(2, 0\)"),
        (invariants.alignment, window([1, 1], [-1, 0], FOUR), "negative index: entry 0"),
        (invariants.alignment, window([-1], [0], FOUR), "no such level"),
        (invariants.tail, window([1] * 4, [0, 1, 2, 3], FOUR, recent=33), "entry 2"),
        (invariants.tail, window([0] * 4, [0, 1, 2, 3], FOUR.prune([(2, 4)]), recent=33), "pruned: entry 2"),
        (invariants.positions, window([1, 1], [1, 0], FOUR), "entry 1"),
    ],
)
def test_broken_windows(check: object, broken: WorkingContext, message: str) -> None:
    with pytest.raises(InvariantError, match=message):
        check(broken)  # type: ignore[operator]


def test_a_stated_cost_has_to_be_true() -> None:
    lied = WorkingContext.trusted(FOUR, np.ones(4, np.int8), np.arange(4), 99, 0, cost=3)
    with pytest.raises(InvariantError, match="states a cost of 3"):
        invariants.budget(lied)


@STEADY
@given(windows())
def test_windows_keep_them_all(window: WorkingContext) -> None:
    invariants.check_window(window)
    invariants.isolation(window, window.lod, window.index)


def test_tree() -> None:
    timeline = Timeline(70)
    invariants.tree(timeline, {1: 70, 2: 2}, before=Timeline(60, 3))
    invariants.tree(Timeline(0, 4), {})
    with pytest.raises(InvariantError, match=r"LOD2 has 2 complete nodes and 1 gists.*\(2, 1\)"):
        invariants.tree(timeline, {1: 70, 2: 1})
    with pytest.raises(InvariantError, match="LOD3 has 0"):
        invariants.tree(timeline, {1: 70, 2: 2, 3: 1})
    with pytest.raises(InvariantError, match="do not continue"):
        invariants.tree(timeline, {1: 70, 2: 2}, before=Timeline(71))


def test_positions_of_slots() -> None:
    mixed = window([1, 0], [0, 1], Timeline(2, 3))
    entry = np.array([0] + [1] * 32 + [2] * 3)
    own = np.concatenate([[15.5], np.arange(32, 67)])
    invariants.positions(mixed, entry, own, own=True)
    invariants.positions(mixed, entry, np.zeros(36))
    with pytest.raises(InvariantError, match="decreases at slot 1"):
        invariants.positions(mixed, entry, np.arange(36)[::-1])
    with pytest.raises(InvariantError, match="order at slot 3"):
        invariants.positions(mixed, entry[::-1], np.arange(36))
    for slot, value in ((0, 20.0), (35, 67.0), (5, own[4])):
        moved = own.copy()
        moved[slot] = value
        with pytest.raises(InvariantError, match=f"slot {slot} "):
            invariants.positions(mixed, entry, moved, own=True)


def test_isolation() -> None:
    mixed = window([1, 0], [0, 1], Timeline(2))
    invariants.isolation(mixed, mixed.lod, mixed.index, denied=((2, 5),))
    with pytest.raises(InvariantError, match="not in the window"):
        invariants.isolation(mixed, np.array([1], np.int8), np.array([1]))
    with pytest.raises(InvariantError, match=r"\(1, 0\) holds denied"):
        invariants.isolation(mixed, mixed.lod, mixed.index, denied=((0, 1),))


def test_constant_compute() -> None:
    invariants.constant_compute([])
    invariants.constant_compute([(4_000, 100), (10**6, 104)])
    invariants.constant_compute([(4_000, 100), (10**6, 130)], per_level=31)
    with pytest.raises(InvariantError, match="1,000,000"):
        invariants.constant_compute([(10**6, 130), (4_000, 100)])


def test_determinism() -> None:
    invariants.determinism([1, "a"], [1, "a"])
    with pytest.raises(InvariantError, match="step 1"):
        invariants.determinism([1, 2], [1, 3])
    with pytest.raises(InvariantError, match="2 and 1 steps"):
        invariants.determinism([1, 2], [1])
