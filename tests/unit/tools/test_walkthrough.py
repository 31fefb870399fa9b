"""A session's page from its event log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megacontext.core import Expand, Timeline, WorkingContext, apply
from megacontext.engine.recording import runs_of
from megacontext.errors import CorruptObject
from tools.report import walkthrough


def log_of(folder: Path) -> Path:
    """A session of two refocuses and three tokens: a block is opened, and closed again."""
    first = WorkingContext.coarsest(Timeline(70), 256, 64)
    opened = apply(Expand(2, 0), first)
    raw = apply(Expand(1, 5), opened)
    ranges: dict[str, Any] = {"dead": [], "denied": [], "pruned": []}
    decision = {"edit": "expand", "score": 0.5, "cost": 31, "chosen": True, "reason": "best score"}

    def refocus(step: int, edits: list[list[Any]], window: WorkingContext) -> dict[str, Any]:
        scores = [0.0] * len(first if step == 1 else raw)
        spent = {"forwarded": 0, "reused": 0}
        shown = [decision] * len(edits)
        return {
            **{"event": "refocus", "step": step, "edits": edits, "scores": scores, "decisions": shown},
            **{"window": runs_of(window), **spent},
        }

    records: list[dict[str, Any]] = [
        {
            **{
                "event": "session",
                "format": 1,
                "model": "m",
                "policy": "lens",
                "prompt": "def f(",
                "budget": 256,
                "recent": 64,
            },
            **{"budget": 256, "recent": 64, "vectors": 1, "refocus_every": 16},
            **{"timeline": {"blocks": 70, "open_tokens": 0, **ranges}},
            "window": runs_of(first),
        },
        refocus(1, [["expand", 2, 0], ["expand", 1, 5]], raw),
    ]
    window = raw
    for number in range(3):
        window = window.advance(window.timeline.append(1))
        records.append(
            {
                **{"event": "token", "token": 1, "text": "a|b ", "tokens": window.timeline.tokens, "cost": window.cost},
                **{"forwarded": 100 + number, "reused": 0},
            }
        )
    closed = apply(Expand(2, 0), first.advance(window.timeline))
    records.append(refocus(2, [["collapse", 1, 5]], closed))
    folder.mkdir(parents=True)
    path = folder / "small.jsonl"
    path.write_text("".join(json.dumps({"at": 0.0, **record}) + "\n" for record in records))
    return path


def test_what_is_told_of_a_session(tmp_path: Path) -> None:
    log_of(tmp_path / "sessions")
    found = walkthrough.load_sessions(tmp_path)["small"]
    assert (found["decoded"], found["refocuses"], found["first_edits"], found["later_edits"]) == (3, 2, 2, 1)
    # One of three edits takes an earlier one back.
    assert found["reversed"] == pytest.approx(1 / 3)
    assert (found["first_slots"], found["slots_per_token"]) == (100, 1.0)
    assert found["history"] == 70 * 32 and found["text"] == "a|b a|b a|b "
    steps = walkthrough.steps_table(found)
    assert steps.count("\n") == 3 and "a\\|b" in steps and "(+0.50)" in steps
    assert walkthrough.load_sessions(tmp_path / "nowhere") == {}


def test_the_pictures_have_the_same_bytes_every_time(tmp_path: Path) -> None:
    log_of(tmp_path / "sessions")
    one, two = (walkthrough.load_sessions(tmp_path)["small"] for _ in range(2))
    for draw in (walkthrough.strips, walkthrough.spent):
        picture = draw(one)
        assert picture == draw(two) and picture.startswith("<?xml") and len(picture) < 100_000


def test_a_log_that_says_otherwise_is_not_rendered(tmp_path: Path) -> None:
    path = log_of(tmp_path / "sessions")
    path.write_text(path.read_text().replace('"edits": [["collapse", 1, 5]]', '"edits": []'))
    with pytest.raises(CorruptObject, match=r"small\.jsonl, line 6"):
        walkthrough.load_sessions(tmp_path)
