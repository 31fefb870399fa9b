"""The curriculum: every axis grows and never falls back, easy samples stay in the mix, the same step gives the same stage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from megacontext.errors import InvalidInput
from megacontext.training.curriculum import Curriculum, Stage

STEPS = st.integers(1, 3000)


@st.composite
def curricula(draw: st.DrawFn) -> Curriculum:
    def stretch(low: float = 0.0) -> tuple[float, float]:
        start, stop = sorted(draw(st.tuples(st.floats(low, 1), st.floats(low, 1))))
        return start, stop

    def rising(most: int) -> tuple[int, int]:
        first, last = sorted(draw(st.tuples(st.integers(1, most), st.integers(1, most))))
        return first, last

    raw = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))), reverse=True)
    spans = [*sorted(draw(st.sets(st.sampled_from([1, 2, 4, 8, 16]), max_size=5))), 32]
    span_grows = stretch()
    return Curriculum(
        spans=tuple(spans),
        far=rising(60),
        gists=rising(200),
        raw=(raw[0], raw[1]),
        levels=draw(st.integers(1, 3)),
        easy=draw(st.floats(0, 1)),
        span_grows=span_grows,
        far_grows=stretch(),
        gists_grow=stretch(),
        raw_shrinks=stretch(),
        level_grows=stretch(span_grows[1]),
    )


def axes(stage: Stage) -> tuple[float, ...]:
    return stage.span, stage.far, -stage.raw, stage.gists, stage.level


@given(curricula(), STEPS, st.data())
def test_no_axis_ever_falls_back(curriculum: Curriculum, steps: int, data: st.DataObject) -> None:
    a, b = sorted(data.draw(st.tuples(st.integers(0, steps - 1), st.integers(0, steps - 1))))
    early, late = curriculum.at(a, steps), curriculum.at(b, steps)
    assert all(one <= other for one, other in zip(axes(early), axes(late), strict=True))
    assert late.level == 1 or late.span == 32


@given(curricula(), st.integers(2, 3000))
def test_it_ends_with_the_hardest_stage(curriculum: Curriculum, steps: int) -> None:
    last = curriculum.at(steps - 1, steps)
    assert axes(last) == (32, curriculum.far[1], -curriculum.raw[1], curriculum.gists[1], curriculum.levels)


@given(curricula(), STEPS, st.integers(0, 10), st.data())
def test_patterns_hold_what_the_stage_says(curriculum: Curriculum, steps: int, seed: int, data: st.DataObject) -> None:
    stage = curriculum.draw(data.draw(st.integers(0, steps - 1)), steps, np.random.default_rng(seed))
    pattern = stage.pattern(np.random.default_rng(seed))
    assert len(pattern) * stage.span == stage.far * 32
    assert pattern.sum() == stage.gisted
    assert 1 <= stage.gisted <= stage.gists
    raw = 1 - stage.gisted / stage.spans
    # At least the share that is to stay raw, to half a span; one gist is always there.
    assert raw >= stage.raw - 0.51 / stage.spans or stage.gisted == 1


@given(curricula(), STEPS, st.integers(0, 100), st.data())
def test_the_same_step_and_generator_give_the_same_stage(
    curriculum: Curriculum, steps: int, seed: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, steps - 1))
    one, two = (curriculum.draw(step, steps, np.random.default_rng(seed)) for _ in range(2))
    assert one == two
    assert all(a <= b for a, b in zip(axes(one), axes(curriculum.at(step, steps)), strict=True))


def test_the_default_goes_from_one_short_span_to_all_of_them() -> None:
    curriculum = Curriculum(levels=3)
    first, last = curriculum.at(0, 1000), curriculum.at(999, 1000)
    assert (first.span, first.gisted, first.level, first.far) == (4, 1, 1, 4)
    assert (last.span, last.gisted, last.level, last.far) == (32, 28, 3, 28)
    assert [curriculum.at(step, 1000).span for step in (0, 150, 250, 300)] == [4, 8, 16, 32]
    assert [curriculum.at(step, 1000).level for step in (300, 550, 750)] == [1, 2, 3]


def test_the_share_of_easy_samples_is_kept_to_the_end() -> None:
    curriculum = Curriculum(easy=0.25)
    rng = np.random.default_rng(0)
    drawn = [curriculum.draw(999, 1000, rng) for _ in range(4000)]
    hardest = curriculum.at(999, 1000)
    easier = np.mean([stage != hardest for stage in drawn])
    # Of the earlier steps, the last two fifths are as hard.
    assert easier == pytest.approx(0.25 * 0.6, abs=0.02)
    assert {stage.span for stage in drawn} == {4, 8, 16, 32}
    assert all(Curriculum(easy=0.0).draw(step, 9, rng) == Curriculum(easy=0.0).at(step, 9) for step in range(9))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"spans": (4, 6)}, "divisors of 32"),
        ({"spans": (8, 4)}, "rising"),
        ({"spans": ()}, "divisors"),
        ({"spans": (4, 8), "levels": 2}, "end with 32"),
        ({"far": (5, 4)}, "must rise"),
        ({"gists": (0, 4)}, "at least 1"),
        ({"raw": (0.1, 0.5)}, "must fall"),
        ({"far_grows": (0.6, 0.5)}, "far_grows"),
        ({"levels": 2, "level_grows": (0.1, 0.7)}, "level_grows must not start"),
    ],
)
def test_what_contradicts_itself_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Curriculum(**wrong)


def test_a_step_outside_the_run_is_refused() -> None:
    with pytest.raises(InvalidInput, match="step 5 is not within a run of 5"):
        Curriculum().at(5, 5)
