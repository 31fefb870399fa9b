"""Pasted repeats and recall lines: copies and facts far enough back to need the far context, and nothing from ahead."""

from __future__ import annotations

import ast
import re

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.errors import ConfigError
from megacontext.testing.tiny_models import byte_tokenizer
from megacontext.training.augment import augment, paste_repeats
from megacontext.training.recall import RecallLines, draw_fact

TOKENS = np.arange(1000)
TOKENIZER = byte_tokenizer()
LINES = RecallLines(TOKENIZER)


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_what_changes_is_a_copy_of_something_earlier(seed: int) -> None:
    pasted = paste_repeats(TOKENS, np.random.default_rng(seed), probability=1.0)
    changed = np.flatnonzero(pasted != TOKENS)
    assert len(pasted) == len(TOKENS) and len(changed) >= 24
    assert (pasted[changed] < TOKENS[changed]).all()
    assert changed[0] >= 256


def test_it_leaves_its_input_alone_and_repeats_itself() -> None:
    before = TOKENS.copy()
    one, two = (augmented(TOKENS, 3, earliest=None) for _ in range(2))
    assert (one == two).all() and (before == TOKENS).all() and (one != TOKENS).any()


def test_never_at_probability_zero_or_in_short_windows() -> None:
    rng = np.random.default_rng(0)
    assert (paste_repeats(TOKENS, rng, probability=0.0) == TOKENS).all()
    assert (paste_repeats(TOKENS[:383], rng, probability=1.0) == TOKENS[:383]).all()
    assert (LINES.plant(TOKENS, rng, probability=0.0) == TOKENS).all()
    assert (LINES.plant(TOKENS[:20], rng, probability=1.0) == TOKENS[:20]).all()


@pytest.mark.parametrize("earliest", [100, 128, 872, 990])
def test_repeats_without_room_are_refused(earliest: int) -> None:
    with pytest.raises(ConfigError, match=f"from token {earliest} on, which must lie between 129 and 871"):
        paste_repeats(TOKENS, np.random.default_rng(0), probability=1.0, earliest=earliest)


def test_a_window_that_has_only_just_no_room_for_repeats_stays_as_it_is() -> None:
    for length in (383, 384):
        same = paste_repeats(TOKENS[:length], np.random.default_rng(0), probability=1.0)
        assert same.tolist() == TOKENS[:length].tolist()
    assert paste_repeats(TOKENS[:385], np.random.default_rng(0), probability=1.0).tolist() != TOKENS[:385].tolist()


def augmented(tokens: npt.NDArray[np.int64], seed: int, *, earliest: int | None) -> npt.NDArray[np.int64]:
    return augment(tokens, np.random.default_rng(seed), repeats=0.7, recall=0.7, lines=LINES, longest=64, earliest=earliest)


@given(st.integers(0, 10**6), st.integers(1, 999), st.one_of(st.none(), st.integers(300, 800)))
def test_nothing_depends_on_tokens_behind_it(seed: int, cut: int, earliest: int | None) -> None:
    """Other tokens from ``cut`` on change nothing in front of it."""
    other = np.concatenate([TOKENS[:cut], np.random.default_rng(seed).integers(5000, 9000, size=1000 - cut)])
    one, two = (augmented(tokens, seed, earliest=earliest) for tokens in (TOKENS, other))
    assert (one[:cut] == two[:cut]).all()


@given(st.integers(0, 10**6), st.integers(200, 800))
def test_a_fact_is_told_before_the_border_and_asked_for_behind_it(seed: int, border: int) -> None:
    planted = LINES.plant(TOKENS + 1000, np.random.default_rng(seed), probability=1.0, earliest=border)
    assert len(planted) == len(TOKENS)
    written = planted < 1000  # bytes of lines; what stood there before is larger
    early, late = (TOKENIZER.decode(planted[part][written[part]].tolist()) for part in (slice(border), slice(border, None)))
    questions = re.findall(r"^assert .*$", late, re.MULTILINE)
    facts = re.findall(r"^(?:\w+_LIMIT = |registry\[|def |from |class |\w+ = [A-Z]).*$", early, re.MULTILINE)
    assert 1 <= len(questions) == len(facts) <= 4 and "assert" not in early
    for question in questions:
        asked = set(re.findall(r"[a-z]+|\d+", question.lower())) - {"assert", "limit", "registry", "code", "module", "repr"}
        assert len(asked) >= 2 and all(word in early.lower() for word in asked)
    assert (planted[~written] == TOKENS[~written] + 1000).all()


@given(st.integers(0, 10**6))
def test_facts_are_python_and_the_question_holds_the_answer(seed: int) -> None:
    fact = draw_fact(np.random.default_rng(seed))
    assert fact == draw_fact(np.random.default_rng(seed)) != draw_fact(np.random.default_rng(seed + 1))
    ast.parse(fact.told)
    (question,) = ast.parse(fact.asked).body
    assert isinstance(question, ast.Assert) and isinstance(question.test, ast.Compare)
    (answer,) = question.test.comparators
    assert isinstance(answer, ast.Constant)
    for part in re.findall(r"\w+", str(answer.value)):
        assert part in fact.told


def test_facts_differ_from_window_to_window() -> None:
    rng = np.random.default_rng(0)
    assert len({draw_fact(rng).told for _ in range(2000)}) == 2000


def test_without_recall_lines_the_numbers_are_those_of_pasted_repeats() -> None:
    mixed, alone = np.random.default_rng(7), np.random.default_rng(7)
    for _ in range(5):
        assert (augment(TOKENS, mixed, repeats=0.5) == paste_repeats(TOKENS, alone, probability=0.5)).all()
    assert mixed.random() == alone.random()
    with pytest.raises(ConfigError, match=r"pass RecallLines\(tokenizer\)"):
        augment(TOKENS, mixed, repeats=0.5, recall=0.5)


def test_both_occur_as_often_as_asked() -> None:
    counts = {"repeats": 0, "recall": 0, "both": 0}
    rng = np.random.default_rng(0)
    for _ in range(300):
        result = augment(TOKENS + 1000, rng, repeats=0.5, recall=0.3, lines=LINES, longest=64)
        recall = bool((result < 1000).any())
        repeats = bool((np.sort(result[result >= 1000])[:-1] == np.sort(result[result >= 1000])[1:]).any())
        counts["recall"] += recall
        counts["repeats"] += repeats
        counts["both"] += recall and repeats
    assert 65 <= counts["recall"] <= 115 and 120 <= counts["repeats"] <= 180 and 25 <= counts["both"] <= 65
