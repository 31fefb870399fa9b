"""The notebook runs from the top, and the committed one shows a run of all its cells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from megacontext.testing.tiny_bundle import save_tiny_bundle

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "gistnet.ipynb"
LARGEST = 700_000


def run(path: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.run_notebook", str(path), *options]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False, env=environment)


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_in_the_tiny_setting(tmp_path: Path) -> None:
    before = NOTEBOOK.read_bytes()
    tiny = save_tiny_bundle(tmp_path / "bundle", key_value=True)
    done = run(NOTEBOOK, "--quick", MEGACONTEXT_BUNDLE=str(tiny))
    assert done.returncode == 0, done.stderr[-3000:]
    assert NOTEBOOK.read_bytes() == before


def test_the_committed_one_was_run_from_top_to_bottom() -> None:
    cells = code_cells(NOTEBOOK)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 6
    assert NOTEBOOK.stat().st_size < LARGEST


def test_no_figure_of_its_prose_is_typed() -> None:
    """Sizes of the design are no measurements; everything else comes out of a cell."""
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "markdown"]
    allowed = {"32", "1,024", "50", "1", "2", "3", "4", "5", "6", "7"}
    words = {word.strip(".,:;()*#%") for cell in cells for word in cell.source.split()}
    assert {word for word in words if word and word[0].isdigit()} <= allowed


def test_a_cell_that_raises_fails_the_run(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("int('gist')")])
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    done = run(tmp_path / "broken.ipynb")
    assert done.returncode == 1
    assert "ValueError" in done.stderr and "gist" in done.stderr
