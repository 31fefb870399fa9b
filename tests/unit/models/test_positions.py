"""Strategies keep order and range for every window, and a window of raw tokens keeps its own positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacontext.errors import BudgetError, ConfigError
from megacontext.models import GistNet, GistNetConfig
from megacontext.models.positions import STRATEGIES, Absolute, IntArray, Log, WindowRanks, window_ranks

Window = tuple[IntArray, IntArray]


def spans(widths: list[int], first: int = 0) -> Window:
    edges = np.cumsum([first, *widths], dtype=np.int64)
    return edges[:-1], edges[1:]


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """Mixed levels of detail, coarse or fine anywhere, with a raw tail, over histories of up to 10^12 tokens."""
    entries = draw(st.lists(st.sampled_from([32**k for k in range(7)]), max_size=60))
    widths = [width for entry in entries for width in ([1] * 32 if entry == 1 else [entry])]
    return spans(widths + [1] * draw(st.integers(1, 100)), draw(st.sampled_from([0, 32, 32**5])))


@given(window=windows(), spare=st.integers(0, 3000), near=st.integers(0, 600), stride=st.sampled_from([1, 32, 64]))
def test_whatever_fits_by_count_keeps_order_and_range(window: Window, spare: int, near: int, stride: int) -> None:
    length = len(window[0]) + spare
    for strategy in (WindowRanks(), Log(near, stride)):
        positions = strategy(*window, length)
        assert positions.dtype == np.int64 and positions.shape == window[0].shape
        assert (np.diff(positions) > 0).all()
        assert positions[0] >= 0 and positions[-1] < length


@given(window=windows(), length=st.integers(64, 100_000))
def test_absolute_sits_at_centres_or_refuses(window: Window, length: int) -> None:
    start, stop = window
    if stop[-1] > length:
        with pytest.raises(BudgetError, match="log strategy"):
            Absolute()(start, stop, length)
        return
    positions = Absolute()(start, stop, length)
    raw = stop - start == 1
    assert (positions[raw] == start[raw]).all()
    assert (np.abs(positions - (start + stop - 1) / 2) <= 0.5).all()
    assert (np.diff(positions) > 0).all()


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@given(count=st.integers(1, 400), first=st.sampled_from([0, 5, 100]))
def test_raw_tokens_alone_keep_their_own_positions(name: str, count: int, first: int) -> None:
    positions = STRATEGIES[name]()(*spans([1] * count, first), 512)
    assert (np.diff(positions) == 1).all()


@given(window=windows(), near=st.integers(1, 600))
def test_log_is_exact_near_and_never_stretches(window: Window, near: int) -> None:
    start, stop = window
    length = len(start) + 2000
    positions = Log(near, stride=1)(start, stop, length)
    back = stop[-1] - 1 - (start + stop - 1) // 2
    distance = positions[-1] - positions
    exact = back <= min(near, length // 2)
    assert (distance[exact] == back[exact]).all()
    crowded = np.arange(len(start))[::-1]
    assert (distance <= np.maximum(back, crowded)).all()


def test_log_uses_the_range_and_flattens() -> None:
    start, stop = spans([32**4] * 20 + [32**2] * 20 + [32] * 32 + [1] * 64)
    positions = Log(near=128)(start, stop, 2048)
    assert positions[0] < 100 and positions[-1] >= 2048 - 64
    coarse = np.diff(positions[:20])
    assert (np.diff(coarse) >= 0).all()  # the farther, the closer together


def test_log_moves_nothing_while_tokens_are_appended_within_a_stride() -> None:
    coarse = [32**3] * 10 + [32] * 31
    tail = 32**3 * 10 + 32 * 31
    room = 64 - tail % 64
    before = Log(stride=64)(*spans(coarse + [1]), 1024)
    for more in range(2, room + 1):
        positions = Log(stride=64)(*spans(coarse + [1] * more), 1024)
        assert (positions[: len(before)] == before).all()
    moved = Log(stride=64)(*spans(coarse + [1] * (room + 1)), 1024)
    assert (moved[: len(before)] != before).any()


def test_histories_far_beyond_float32_keep_distinct_positions() -> None:
    window = spans([1] * 40, first=10**9)
    whole = spans([10**9] + [1] * 40)
    for strategy in (WindowRanks(), Log()):
        for start, stop in (window, whole):
            positions = strategy(start, stop, 1 << 25)
            assert len(np.unique(positions.astype(np.float32))) == len(start)
    with pytest.raises(BudgetError):
        Absolute()(*spans([1 << 24, 1]), 1 << 25)


@pytest.mark.parametrize("strategy", [WindowRanks(), Log()])
def test_more_slots_than_positions_are_refused(strategy: WindowRanks | Log) -> None:
    with pytest.raises(BudgetError, match="lower the budget"):
        strategy(*spans([1] * 65), 64)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_an_empty_window_has_no_positions(name: str) -> None:
    assert STRATEGIES[name]()(*spans([]), 64).shape == (0,)


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 8), st.integers(0, 200))
def test_gists_take_their_stride_where_there_is_room(gists: list[bool], stride: int, room: int) -> None:
    widths = np.where(gists, 32, 1)
    stop = np.cumsum(widths, dtype=np.int64)
    positions = WindowRanks(stride)(stop - widths, stop, len(gists) + room)
    steps = np.diff(np.append(positions, positions[-1] + 1 if len(positions) else 0))
    assert (steps[~np.array(gists, dtype=bool)] == 1).all() and (positions < len(gists) + room).all()
    taken = set(steps[:-1][np.array(gists[:-1], dtype=bool)].tolist())
    assert len(taken) <= 1 and taken <= set(range(1, stride + 1))
    if room >= (stride - 1) * sum(gists) and taken:
        assert taken == {stride}


def test_the_ranks_follow_the_gistnet() -> None:
    assert window_ranks(None).gist_stride == 1
    assert window_ranks(GistNet(GistNetConfig(width=32, output_rms=1.0, heads=2, position_stride=4))).gist_stride == 4
    with pytest.raises(ConfigError, match="at least one"):
        WindowRanks(0)
