"""Hypothesis strategies for timelines, windows and scores."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from megacontext.core import FocusScores, Targets, Timeline, WorkingContext, apply, legal_edits

STEADY = settings(derandomize=True, deadline=None, max_examples=60)
"""The same examples every time, so that a red run can be repeated."""


@st.composite
def timelines(draw: st.DrawFn, most: int = 2200) -> Timeline:
    """Up to LOD3, with a few dead, denied and pruned ranges that may cover whole nodes."""
    blocks = draw(st.integers(0, most))
    timeline = Timeline(blocks, draw(st.integers(0, 31)))
    for _ in range(draw(st.integers(0, 3)) if blocks else 0):
        start = draw(st.integers(0, blocks - 1))
        length = draw(st.sampled_from([1, 5, 32, 40, 1024]))
        timeline = timeline.kill(start, min(blocks, start + length))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2])) if blocks else 0):
        start = draw(st.integers(0, blocks - 1))
        length = draw(st.sampled_from([1, 5, 40, 1024]))
        timeline = timeline.deny([(start, min(blocks, start + length))])
    for _ in range(draw(st.sampled_from([0, 0, 1, 2])) if blocks else 0):
        start = draw(st.integers(0, blocks - 1))
        timeline = timeline.prune([(start, min(blocks, start + draw(st.sampled_from([1, 5, 40, 1024]))))])
    return timeline


@st.composite
def windows(draw: st.DrawFn, most: int = 2200, edits: int = 8) -> WorkingContext:
    """A window that random legal edits led to."""
    timeline = draw(timelines(most))
    vectors = draw(st.sampled_from([1, 1, 2, 4]))
    recent = draw(st.sampled_from([0, 1, 64, 100]))
    slack = draw(st.integers(0, 900))
    least = WorkingContext.coarsest(timeline, 10**9, recent, vectors).cost
    window = WorkingContext.coarsest(timeline, max(least + slack, 1), recent, vectors)
    for _ in range(draw(st.integers(0, edits))):
        legal = legal_edits(window)
        if legal:
            window = apply(draw(st.sampled_from(legal)), window)
    return window


def scores_for(window: WorkingContext, seed: int, targets: int = 0) -> FocusScores:
    """Seeded scores in [-1, 1] and targets anywhere in the timeline."""
    random = np.random.default_rng(seed)
    blocks = window.timeline.blocks
    found = None
    if targets and blocks:
        found = Targets(random.integers(0, blocks, targets), random.random(targets))
    return FocusScores(random.uniform(-1, 1, len(window)), found)
