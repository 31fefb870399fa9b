from __future__ import annotations

import numpy as np
import pytest
from core_strategies import STEADY, timelines
from hypothesis import given
from hypothesis import strategies as st

from megacontext.core import Timeline, node_blocks
from megacontext.errors import InvalidInput


def alive(timeline: Timeline) -> np.ndarray:
    mask = np.ones(timeline.blocks, bool)
    for start, stop in timeline.dead:
        mask[start:stop] = False
    return mask


@STEADY
@given(timelines(), st.integers(0, 3), st.integers(0, 2200))
def test_deadness_agrees_with_a_mask_of_blocks(timeline: Timeline, lod: int, index: int) -> None:
    mask = alive(timeline)
    assert timeline.live_blocks == int(mask.sum())
    if not timeline.complete(lod, index):
        return
    start, stop = node_blocks(lod, index)
    dead = not mask[start:stop].any()
    assert timeline.is_dead(lod, index) is dead
    assert timeline.dead_mask(np.array([lod], np.int8), np.array([index])).tolist() == [dead]
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
        lambda: Timeline(9).extend(8, 31),
    ],
)
def test_nonsense_is_refused(make: object) -> None:
    with pytest.raises(InvalidInput):
        make()  # type: ignore[operator]


def test_levels() -> None:
    assert [Timeline(n).levels for n in (0, 1, 32, 32**4)] == [0, 1, 2, 5]
