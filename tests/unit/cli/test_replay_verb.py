"""``megacontext generate --record`` and ``megacontext replay``."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_kit import Cli

from megacontext.cli.replay import _screens
from megacontext.engine.recording import replay


@pytest.fixture
def recording(cli: Cli, memory: Path, tmp_path: Path) -> Path:
    words = ("generate", "class Beta3:\n", "--budget", "200", "--max-new-tokens", "20", "--temperature", "1", "--json")
    answer = cli("-C", memory, *words, "--record", tmp_path / "r" / "session.jsonl")
    assert answer.code == 0, answer.err
    assert Path(answer.json["recording"]).is_file()
    assert answer.json["window"]["cost"] == list(replay(tmp_path / "r" / "session.jsonl"))[-1].window.cost
    return tmp_path / "r" / "session.jsonl"


def test_every_refocus_is_printed(cli: Cli, recording: Path) -> None:
    answer = cli("replay", recording)
    assert answer.code == 0
    assert answer.out.count("\nrefocus ") == sum(frame.kind == "refocus" for frame in replay(recording))
    assert "policy hybrid" in answer.out and "unfinished block" in answer.out


def test_for_programs(cli: Cli, recording: Path) -> None:
    found = cli("replay", recording, "--json").json
    assert found["session"]["prompt"] == "class Beta3:\n"
    tokens = [frame for frame in found["frames"] if frame["event"] == "token"]
    assert len(tokens) == 20 and all(frame["window"]["cost"] == frame["cost"] for frame in tokens)


def test_the_animation_follows_the_text(recording: Path) -> None:
    screens = list(_screens(list(replay(recording))))
    times = [at for _, at in screens]
    assert times == sorted(times)
    assert "class Beta3:" in screens[0][0] and "refocus" in screens[-1][0] and "cost" in screens[-1][0]


def test_what_is_no_recording(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    answer = cli("replay", tmp_path / "notes.txt")
    assert answer.code == 2 and "generate --record" in answer.err
    assert cli("replay", tmp_path / "nowhere").code == 3
