"""Stability: what counts as reversed, what as stayed, and that an edit is judged by what it really saves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megacontext.core import BLOCK, Collapse, Edit, Expand, Timeline, WorkingContext, apply_all
from megacontext.engine.assemble import slots_of
from megacontext.engine.bundle import load_bundle
from megacontext.evaluation.arms import make_reader
from megacontext.evaluation.scoring import Chunk, Scorer
from megacontext.evaluation.stability import Recorder, Reversal, Step, residencies, reversals, saved, stability
from megacontext.models.positions import window_ranks
from megacontext.testing.tiny_bundle import save_tiny_bundle

OPEN, CLOSE = Expand(1, 0), Collapse(1, 0)


def steps(*edits: tuple[Edit, ...], grow: int = 0) -> list[Step]:
    """Four LOD1 blocks and a raw tail of one, edited step by step; ``grow`` tokens are decoded between two of them."""
    window = WorkingContext(Timeline(5), np.array([1, 1, 1, 1, 0], np.int8), np.arange(5), 5 * BLOCK, BLOCK)
    found = []
    for number, chosen in enumerate(edits):
        window = apply_all(chosen, window)
        found.append(Step(after=window, edits=chosen, at=window.timeline.tokens + grow * number))
    return found


def test_only_an_edit_undone_in_time_is_reversed() -> None:
    never = (Expand(1, 2),)
    assert reversals(steps((OPEN,), never, (CLOSE,))) == [Reversal(edit=OPEN, made=0, undone=2)]
    assert reversals(steps((OPEN,), never, (CLOSE,)), within=1) == []
    assert reversals(steps((OPEN,), (CLOSE,), (OPEN,))) == [
        Reversal(edit=OPEN, made=0, undone=1),
        Reversal(edit=CLOSE, made=1, undone=2),
    ]


def test_residency_counts_the_steps_a_block_stayed_raw() -> None:
    assert residencies(steps((OPEN,), (Expand(1, 3),), (CLOSE,))) == [2]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    bundle = load_bundle(save_tiny_bundle(tmp_path_factory.mktemp("bundle")))
    return Scorer(base=bundle.base, encoder=bundle.gists, strategy=window_ranks(bundle.gists))


def test_an_edit_is_judged_by_the_tokens_decoded_while_it_stood(scorer: Scorer) -> None:
    ids = np.random.default_rng(3).integers(5, 200, 6 * BLOCK)
    reader = make_reader(ids[: 5 * BLOCK], scorer.encoder, scorer.base)
    opened, closed = steps((OPEN,), (CLOSE,), grow=8)
    nothing = np.zeros(0, np.int64)
    context = [slots_of(step.after, reader, nothing, gists=True) for step in (opened, closed)]
    raw, gist = scorer([Chunk(context=each, following=ids[opened.at : closed.at], start=opened.at) for each in context])
    found = saved(Reversal(edit=OPEN, made=0, undone=1), [opened, closed], ids, reader, scorer)
    assert found == pytest.approx(float((gist - raw).sum()), abs=1e-4) and abs(found) > 1e-4


def test_a_session_that_only_flickers_is_told_so(scorer: Scorer, tmp_path: Path) -> None:
    ids = np.random.default_rng(4).integers(5, 200, 6 * BLOCK)
    reader = make_reader(ids[: 5 * BLOCK], scorer.encoder, scorer.base)
    figures = stability(Recorder(steps=steps((OPEN,), (CLOSE,), (OPEN,), (CLOSE,), grow=4)), ids, reader, scorer)
    assert figures["edits"] == 4 and figures["reversed"] == pytest.approx(0.75) and figures["judged"] == 3
    assert 0 <= figures["reversed_unpaid"] <= figures["reversed"] and figures["residency_mean"] == 1.0
    still = stability(Recorder(steps=steps((OPEN,), (), (), grow=4)), ids, reader, scorer)
    assert still["reversed"] == 0.0 and still["reversed_unpaid"] == 0.0 and still["residency_mean"] is None
