"""The examples run as they are."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_many_sessions() -> None:
    answers = runpy.run_path(str(EXAMPLES / "many_sessions.py"))["main"](sessions=2, tokens=4)
    assert len(answers) == 2 and all(answers)
