"""The loop: an interrupted run continues with the numbers that it would have had, and a diverging one stops."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regression_task
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from regression_task import Regression, config, records, same, weights

from megacontext.errors import ConfigError, CorruptCheckpoint, DivergedError
from megacontext.training.checkpoint import checkpoints, load_checkpoint
from megacontext.training.loop import fit

ACCUMULATED: dict[str, Any] = {"accumulate": 3}
WATCHED: dict[str, Any] = {"stop_on": "error", "patience": 5}


@pytest.mark.parametrize("more", [{}, ACCUMULATED, WATCHED], ids=["plain", "accumulated", "watched"])
@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_a_resumed_run_has_identical_numbers(tmp_path: Path, stop_at: int, more: dict[str, Any]) -> None:
    whole = fit(Regression(), config(tmp_path / "whole", **more), quiet=True)
    with pytest.raises(KeyboardInterrupt):
        fit(Regression(stop_at=stop_at), config(tmp_path / "cut", **more), quiet=True)
    resumed = fit(Regression(), config(tmp_path / "cut", **more), quiet=True)
    assert resumed == whole and whole.ended == "finished" and whole.step == 12
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_legs_of_a_time_limit_have_the_numbers_of_one_run(tmp_path: Path) -> None:
    whole = fit(Regression(), config(tmp_path / "whole", **WATCHED), quiet=True)
    legs = []
    while not legs or legs[-1].ended == "time":
        leg = config(tmp_path / "legs", every_s=1e9, stop_after_s=1e-9, **WATCHED)
        legs.append(fit(Regression(), leg, quiet=True))
    assert [leg.step for leg in legs] == list(range(1, 13))
    assert legs[-1] == whole
    assert records(tmp_path / "legs") == records(tmp_path / "whole")


def test_a_leg_with_time_enough_is_not_cut(tmp_path: Path) -> None:
    assert fit(Regression(), config(tmp_path, stop_after_s=600), quiet=True).ended == "finished"


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Three micro-batches are three draws, the first that of a run without; a step averages their gradients."""
    fit(Regression(), config(tmp_path / "one", steps=1), quiet=True)
    fit(Regression(), config(tmp_path / "three", steps=1, **ACCUMULATED), quiet=True)
    draws = [np.random.default_rng(seed).standard_normal() for seed in ((0, 0), (0, 0, 1), (0, 0, 2))]
    assert len(set(draws)) == 3
    first = [records(tmp_path / name)[0]["first"] for name in ("one", "three")]
    assert first == pytest.approx([draws[0], np.mean(draws)])
    assert records(tmp_path / "one")[0]["grad_norm"] != records(tmp_path / "three")[0]["grad_norm"]


def test_steps_after_the_last_checkpoint_are_done_again_and_logged_once(tmp_path: Path) -> None:
    fit(Regression(), config(tmp_path / "whole"), quiet=True)
    with pytest.raises(KeyboardInterrupt):
        fit(Regression(stop_at=5), config(tmp_path / "cut", every_s=1e9), quiet=True)
    assert len(records(tmp_path / "cut")) == 5 and not checkpoints(tmp_path / "cut")
    fit(Regression(), config(tmp_path / "cut"), quiet=True)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")


def test_it_learns_and_evaluates(tmp_path: Path) -> None:
    before = Regression().evaluate()["error"]
    after = fit(Regression(), config(tmp_path, steps=80), quiet=True).evaluation["error"]
    assert after < 0.5 * before
    evaluated = [line["step"] for line in records(tmp_path) if "validation/error" in line]
    assert evaluated[:3] == [3, 7, 11]


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    first = fit(Regression(), config(tmp_path), quiet=True)
    assert fit(Regression(stop_at=0), config(tmp_path), quiet=True) == first


# -- the best by validation -------------------------------------------------------------------------------------


def planned(*figures: float) -> dict[int, float]:
    """What the evaluation before training and then the one after every fourth step report."""
    return {4 * number: figure for number, figure in enumerate(figures)}


@pytest.mark.parametrize(
    ("better", "figures", "patience", "exported", "step", "ended"),
    [
        ("lower", (5, 3, 4, 2), 2, 12, 12, "finished"),
        ("lower", (5, 3, 4, 6, 1), 2, 4, 12, "early"),
        ("lower", (5, 3, 4, 6, 1), 0, 16, 16, "finished"),
        ("lower", (5, 3, 4, 3, 9), 0, 4, 16, "finished"),
        ("higher", (5, 7, 6, 4, 9), 2, 4, 12, "early"),
        ("higher", (5, 4, 3, 2, 1), 3, 0, 12, "early"),
    ],
)
def test_the_best_is_exported_and_never_merely_the_last(
    tmp_path: Path, better: str, figures: tuple[float, ...], patience: int, exported: int, step: int, ended: str
) -> None:
    steps = 4 * (len(figures) - 1)
    run = config(tmp_path, steps=steps, stop_on="planned", better=better, patience=patience)
    outcome = fit(Regression(planned=planned(*figures)), run, quiet=True)
    assert (outcome.exported, outcome.step, outcome.ended) == (exported, step, ended)
    assert outcome.evaluation["planned"] == figures[exported // 4]
    assert int(weights(tmp_path)["steps"]) == exported
    again = fit(Regression(stop_at=outcome.step, planned=planned(*figures)), run, quiet=True)
    assert again == outcome


@settings(max_examples=12)
@given(st.lists(st.integers(0, 5), min_size=3, max_size=6), st.integers(0, 3), st.integers(0, 19))
def test_early_stopping_survives_any_interruption(
    tmp_path_factory: pytest.TempPathFactory, figures: list[int], patience: int, stop_at: int
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    plan, steps = planned(*figures), 4 * (len(figures) - 1)
    more: dict[str, Any] = {"steps": steps, "stop_on": "planned", "patience": patience}
    whole = fit(Regression(planned=plan), config(folder / "whole", **more), quiet=True)
    try:
        fit(Regression(planned=plan, stop_at=stop_at), config(folder / "cut", every_s=1e9, **more), quiet=True)
    except KeyboardInterrupt:
        assert fit(Regression(planned=plan), config(folder / "cut", **more), quiet=True) == whole
    assert same(weights(folder / "cut"), weights(folder / "whole"))
    assert whole.evaluation["planned"] == min(figures[: whole.step // 4 + 1])


def test_a_figure_that_the_task_lacks_is_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no figure named errror; this run has error"):
        fit(Regression(stop_at=0), config(tmp_path, stop_on="errror"), quiet=True)
    with pytest.raises(ValueError, match="patience needs stop_on"):
        config(tmp_path, patience=3)


def test_a_figure_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="planned became nan on the validation split after step 8"):
        fit(Regression(planned=planned(2, 1, float("nan"), 0)), config(tmp_path, stop_on="planned"), quiet=True)
    assert load_checkpoint(checkpoints(tmp_path)[-1])["step"] == 7


def test_a_best_checkpoint_that_is_gone_is_missed(tmp_path: Path) -> None:
    run = config(tmp_path, stop_on="planned")
    fit(Regression(planned=planned(5, 1, 2, 3)), run, quiet=True)
    (tmp_path / "step-00000004.pt").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"step-00000004\.pt, the best by planned, is gone"):
        fit(Regression(planned=planned(5, 1, 2, 3)), run, quiet=True)


# -- what can go wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("poison", "what"), [("nan_at", "loss"), ("nan_gradient_at", "gradient's norm")])
def test_a_diverging_run_stops_with_its_last_checkpoint_intact(tmp_path: Path, poison: str, what: str) -> None:
    with pytest.raises(DivergedError, match=f"the {what} became nan at step 6: lower matrix_lr"):
        fit(Regression(**{poison: 6}), config(tmp_path, **ACCUMULATED), quiet=True)  # type: ignore[arg-type]
    state = load_checkpoint(checkpoints(tmp_path)[-1])
    assert state["step"] == 6
    assert all(torch.isfinite(value).all() for value in state["module"].values())
    assert [line["step"] for line in records(tmp_path)] == list(range(6))
    fit(Regression(), config(tmp_path, **ACCUMULATED), quiet=True)
    fit(Regression(), config(tmp_path / "whole", **ACCUMULATED), quiet=True)
    assert same(weights(tmp_path), weights(tmp_path / "whole"))


def test_lowered_rates_count_after_a_resume(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(Regression(stop_at=4), config(tmp_path), quiet=True)
    before = load_checkpoint(checkpoints(tmp_path)[-1])["module"]
    fit(Regression(), config(tmp_path, steps=5, matrix_lr=0.0, other_lr=0.0, weight_decay=0.0), quiet=True)
    after = weights(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before if name != "steps")


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    fit(Regression(), config(tmp_path), quiet=True)
    before = [path.read_bytes() for path in checkpoints(tmp_path)]
    with pytest.raises(CorruptCheckpoint, match="belongs to another model"):
        fit(Regression(width=5), config(tmp_path), quiet=True)
    assert [path.read_bytes() for path in checkpoints(tmp_path)] == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_still_works(tmp_path: Path) -> None:
    whole = fit(Regression(), config(tmp_path), quiet=True)
    older, newest = checkpoints(tmp_path)
    newest.write_bytes(newest.read_bytes()[:500])
    with pytest.raises(CorruptCheckpoint, match=f"delete it to resume from {older.name}"):
        fit(Regression(), config(tmp_path), quiet=True)
    newest.unlink()
    assert fit(Regression(), config(tmp_path), quiet=True) == whole


def test_a_kill_between_write_and_rename_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    script = [sys.executable, str(Path(regression_task.__file__)), str(tmp_path / "cut")]
    killed = subprocess.run([*script, json.dumps({"kill_at": 6})], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["step-00000004.pt", "step-00000005.pt"]
    assert (tmp_path / "cut" / "step-00000006.partial").is_file()
    whole = fit(Regression(), config(tmp_path / "whole"), quiet=True)
    assert fit(Regression(), config(tmp_path / "cut"), quiet=True) == whole
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
