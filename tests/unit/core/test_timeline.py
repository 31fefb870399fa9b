from __future__ import annotations

import numpy as np
import pytest
from core_strategies import STEADY, timelines
from hypothesis import given
from hypothesis import strategies as st

from megacontext.core import Timeline, node_blocks
from megacontext.errors import InvalidInput


def outside(timeline: Timeline, ranges: tuple[tuple[int, int], ...]) -> np.ndarray:
    mask = np.ones(timeline.blocks, bool)
    for start, stop in ranges:
        mask[start:stop] = False
    return mask


@STEADY
@given(timelines(), st.integers(0, 3), st.integers(0, 2200))
def test_deadness_agrees_with_a_mask_of_blocks(timeline: Timeline, lod: int, index: int) -> None:
    mask = outside(timeline, timeline.dead)
    assert timeline.live_blocks == int(mask.sum())
    if not timeline.complete(lod, index):
        return
    start, stop = node_blocks(lod, index)
    dead = not mask[start:stop].any()
    assert timeline.is_dead(lod, index) is dead
    assert timeline.dead_mask(np.array([lod], np.int8), np.array([index])).tolist() == [dead]
    allowed = outside(timeline, timeline.denied)
    mask &= allowed
    nodes = np.array([lod], np.int8), np.array([index])
    assert timeline.absent_mask(*nodes).tolist() == [not mask[start:stop].any()]
    assert timeline.denied_mask(*nodes).tolist() == [not allowed[start:stop].all()] == [timeline.holds_denied(lod, index)]
    assert timeline.present(start, stop).tolist() == (start + np.flatnonzero(mask[start:stop])).tolist()
    if lod:
        live = timeline.live_children(lod, index)
        child = [node_blocks(lod - 1, i) for i in live.tolist()]
        assert sum(int(mask[a:b].sum()) for a, b in child) == int(mask[start:stop].sum())
        assert all(mask[a:b].any() for a, b in child)
        sizes = timeline.family_sizes(np.array([lod], np.int8), np.array([index]))
        assert sizes.tolist() == [live.size] == [timeline.family_size(lod, index)]


@STEADY
@given(timelines(), st.integers(0, 5000), st.integers(0, 200))
def test_growth(timeline: Timeline, tokens: int, recent: int) -> None:
    later = timeline.append(tokens)
    assert later.tokens == timeline.tokens + tokens
    assert later.grows_from(timeline) and later.truncate(timeline.tokens) == timeline
    assert timeline.grows_from(later) is (tokens == 0)
    start = later.tail_start(recent)
    assert start == later.blocks or (start + 1) * 32 > later.tokens - recent
    assert start == 0 or start * 32 <= later.tokens - recent


def test_a_death_is_growth_and_a_resurrection_is_not() -> None:
    before = Timeline(100, 3, ((10, 20),))
    after = before.kill(15, 40)
    assert after.dead == ((10, 40),)
    assert after.grows_from(before) and not before.grows_from(after)


def test_a_timeline_of_another_reader_is_no_growth() -> None:
    timeline = Timeline(100, 3, ((10, 20),))
    denied = timeline.deny([(15, 30), (40, 50), (30, 32)])
    assert denied.denied == ((15, 32), (40, 50)) and denied.dead == timeline.dead and denied != timeline
    assert not denied.grows_from(timeline) and not timeline.grows_from(denied)
    assert denied.append(77).grows_from(denied) and denied.append(77).denied == denied.denied
    assert denied.truncate(45 * 32).denied == ((15, 32), (40, 45))


@STEADY
@given(timelines(), st.integers(0, 2200))
def test_the_coarsest_tiling_covers_what_is_allowed_with_as_few_nodes_as_possible(timeline: Timeline, stop: int) -> None:
    stop = min(stop, timeline.blocks)
    lod, index = timeline.coarsest(stop)
    covered = np.zeros(timeline.blocks, int)
    for node in zip(lod.tolist(), index.tolist(), strict=True):
        start, end = node_blocks(*node)
        covered[start:end] += 1
        assert end <= stop and not timeline.holds_denied(*node)
        above = node[0] + 1, node[1] // 32
        assert node_blocks(*above)[1] > stop or timeline.holds_denied(*above)
    assert covered.max(initial=0) <= 1
    present = timeline.present(0, stop)
    assert covered[present].all() and not covered[~outside(timeline, timeline.denied)].any()


def test_a_long_denied_history_is_passed_over_at_once() -> None:
    timeline = Timeline(32**6, 0, (), ((5, 32**6 - 7),))
    lod, index = timeline.coarsest(timeline.blocks)
    assert lod.tolist() == [1] * 12
    assert index.tolist() == [*range(5), *range(32**6 - 7, 32**6)]


def test_touching_dead_ranges_are_joined() -> None:
    assert Timeline(100, 0, ((1, 2), (2, 5))) == Timeline(100, 0, ((1, 5),))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Timeline(-1),
        lambda: Timeline(1, 32),
        lambda: Timeline(5, 0, ((3, 3),)),
        lambda: Timeline(5, 0, ((3, 6),)),
        lambda: Timeline(9, 0, ((3, 6), (5, 7))),
        lambda: Timeline(9, 0, ((5, 7), (1, 2))),
        lambda: Timeline(9, 0, (), ((3, 10),)),
        lambda: Timeline(9).deny([(4, 4)]),
        lambda: Timeline(9).extend(8, 31),
    ],
)
def test_nonsense_is_refused(make: object) -> None:
    with pytest.raises(InvalidInput):
        make()  # type: ignore[operator]


def test_levels() -> None:
    assert [Timeline(n).levels for n in (0, 1, 32, 32**4)] == [0, 1, 2, 5]


@given(timeline=timelines(), count=st.integers(1, 40))
def test_the_newest_blocks_are_the_last_that_may_be_shown_raw(timeline: Timeline, count: int) -> None:
    mask = np.all([outside(timeline, spans) for spans in (timeline.dead, timeline.denied, timeline.pruned)], axis=0)
    raw = np.flatnonzero(mask)
    np.testing.assert_array_equal(timeline.newest(count), raw[max(0, len(raw) - count) :])
