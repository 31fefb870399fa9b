"""Figures: one line a step in the run's folder, trackers offline in the same folder, missing ones named."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import regression_task
from regression_task import Regression, config

from megacontext.errors import ConfigError
from megacontext.training.loop import fit


@pytest.mark.parametrize(("tracker", "extra"), [("trackio", "train"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, extra: str
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(ConfigError, match=rf"tracker: {tracker} needs the extra: pip install 'megacontext\[{extra}\]'"):
        fit(Regression(stop_at=0), config(tmp_path, tracker=tracker), quiet=True)


def test_trackio_keeps_one_run_in_the_folder_across_a_resume(tmp_path: Path) -> None:
    """In processes of their own: trackio reads its folder once, from the environment."""
    environment = {name: value for name, value in os.environ.items() if name != "TRACKIO_DIR"}
    for steps in (5, 12):
        fields = json.dumps({"tracker": "trackio", "steps": steps})
        script = [sys.executable, str(Path(regression_task.__file__)), str(tmp_path / "run"), fields]
        subprocess.run(script, check=True, capture_output=True, env=environment)
    (database,) = (tmp_path / "run" / "trackio").glob("*.db")
    with closing(sqlite3.connect(database)) as held:
        assert held.execute("select run_name, step from metrics order by step").fetchall() == [("run", n) for n in range(12)]


def test_trackers_have_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tracker"):
        config(tmp_path, tracker="tensorboard")
