from __future__ import annotations

import numpy as np
import pytest
from core_strategies import STEADY, scores_for, windows
from hypothesis import given
from hypothesis import strategies as st

from megacontext.core import (
    Collapse,
    Expand,
    FocusScores,
    Timeline,
    WorkingContext,
    describe,
    legend,
    strip,
    summary,
)
from megacontext.errors import InvalidInput


@STEADY
@given(windows(), st.integers(1, 200), st.booleans())
def test_strips_are_as_wide_as_asked(window: WorkingContext, width: int, ascii_only: bool) -> None:
    text = strip(window, width, scores_for(window, 1), ascii_only=ascii_only)
    lines = text.split("\n")
    assert all(len(line) == max(width, 20) for line in lines[:-1])
    assert not ascii_only or text.isascii()


def test_what_a_strip_shows() -> None:
    window = WorkingContext.coarsest(Timeline(1100, 4), 500, 64)
    scores = np.zeros(len(window))
    scores[0], scores[1] = 0.9, -0.9
    shades, marks, scale = strip(window, 60, FocusScores(scores)).split("\n")
    assert shades[0] == "░" and shades[-1] == "▌" and "▒" in shades and "█" in shades
    assert marks.count("▲") == 1 and marks.count("▼") == 1 and marks.index("▲") < marks.index("▼")
    assert scale.startswith("0") and scale.endswith("35,204")
    with pytest.raises(InvalidInput, match="entries"):
        strip(window, 60, FocusScores(np.zeros(1)))
    assert strip(WorkingContext.coarsest(Timeline(0), 9, 0)).startswith("0")


def test_words() -> None:
    assert "raw" in legend() and legend(ascii_only=True).isascii()
    assert describe(Expand(2, 1)) == "expand LOD2 #1 (tokens 1,024..2,047) into LOD1 gists"
    assert describe(Expand(0, 2)) == "expand raw block #2 (tokens 64..95)"
    assert describe(Collapse(1, 2)) == "collapse its raw block into LOD1 #2 (tokens 64..95)"
    window = WorkingContext.coarsest(Timeline(40, 4), 500, 40)
    assert summary(window) == "2 raw, 6 LOD1, 1 LOD2, 4 open tokens; cost 75 of 500 for 1,284 tokens"
    assert summary(WorkingContext.coarsest(Timeline(0), 9, 0)).startswith("empty")
