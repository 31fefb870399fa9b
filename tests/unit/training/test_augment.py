"""Pasted repeats: copies of earlier stretches, far enough apart to need the far context."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.training.augment import paste_repeats

TOKENS = np.arange(1000)


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
    one, two = (paste_repeats(TOKENS, np.random.default_rng(3), probability=1.0) for _ in range(2))
    assert (one == two).all() and (before == TOKENS).all() and (one != TOKENS).any()


def test_never_at_probability_zero_or_in_short_windows() -> None:
    rng = np.random.default_rng(0)
    assert (paste_repeats(TOKENS, rng, probability=0.0) == TOKENS).all()
    assert (paste_repeats(TOKENS[:383], rng, probability=1.0) == TOKENS[:383]).all()
