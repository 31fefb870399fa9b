from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_kit import Cli

from megacontext.cli import bench_storage


def test_the_file_and_the_table_say_the_same(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"blocks": 8192, "appends": 2, "reads": 2, "cold_reads": 1, "opens": 1, "branches": 1}
    monkeypatch.setattr(bench_storage, "QUICK", few)
    answer = cli("bench", "storage", "--json", "out/s.json", "--quick", "--folder", tmp_path)
    assert answer.code == 0, answer.err
    result = json.loads((tmp_path / "out/s.json").read_text())
    assert result["kind"] == "storage" and result["quick"] and result["config"]["blocks"] == 8192
    assert {"machine", "python", "threads", "commit"} <= set(result["environment"])
    assert str(tmp_path) not in json.dumps(result)
    assert f"{result['summary']['open_ms']:.2f} ms (aim ≤ 10 ms)" in answer.out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_too_few_blocks_are_refused(cli: Cli, tmp_path: Path) -> None:
    answer = cli("bench", "storage", "--json", "s.json", "--blocks", "100")
    assert answer.code == 2 and not (tmp_path / "s.json").exists()
