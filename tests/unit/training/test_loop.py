"""The loop: an interrupted run continues with the numbers that it would have had, and a diverging one stops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from megacontext.errors import CorruptCheckpoint, DivergedError
from megacontext.training.checkpoint import checkpoints, load_checkpoint
from megacontext.training.config import RunConfig
from megacontext.training.loop import fit


class Regression:
    """A small real task: fit a random linear map. ``stop_at`` interrupts, ``nan_at`` poisons a step."""

    def __init__(self, *, stop_at: int = -1, nan_at: int = -1, width: int = 4) -> None:
        torch.manual_seed(5)
        self._net = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 2))
        self._target = torch.randn(width, 2)
        self._stop_at, self._nan_at = stop_at, nan_at

    @property
    def module(self) -> nn.Module:
        return self._net

    def loss(self, step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        if step == self._stop_at:
            raise KeyboardInterrupt
        inputs = torch.from_numpy(rng.standard_normal((16, len(self._target)))).float()
        loss = (self._net(inputs) - inputs @ self._target).square().mean()
        return loss * float("nan") if step == self._nan_at else loss, {"first": float(inputs[0, 0])}

    def evaluate(self) -> dict[str, float]:
        inputs = torch.eye(len(self._target))
        return {"error": float((self._net(inputs) - self._target).square().mean().detach())}

    def export(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(self._net.state_dict(), folder / "net.pt")


def config(folder: Path, *, every_s: float = -1.0, steps: int = 12) -> RunConfig:
    return RunConfig(output=folder, steps=steps, warmup=2, evaluate_every=4, checkpoint_every_s=every_s)


def records(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_a_resumed_run_has_identical_numbers(tmp_path: Path, stop_at: int) -> None:
    whole = fit(Regression(), config(tmp_path / "whole"), quiet=True)
    with pytest.raises(KeyboardInterrupt):
        fit(Regression(stop_at=stop_at), config(tmp_path / "cut"), quiet=True)
    resumed = fit(Regression(), config(tmp_path / "cut"), quiet=True)
    assert resumed == whole
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    one, two = (torch.load(tmp_path / name / "model" / "net.pt") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_steps_after_the_last_checkpoint_are_done_again_and_logged_once(tmp_path: Path) -> None:
    fit(Regression(), config(tmp_path / "whole"), quiet=True)
    with pytest.raises(KeyboardInterrupt):
        fit(Regression(stop_at=5), config(tmp_path / "cut", every_s=1e9), quiet=True)
    assert len(records(tmp_path / "cut")) == 5 and not checkpoints(tmp_path / "cut")
    fit(Regression(), config(tmp_path / "cut"), quiet=True)
    assert records(tmp_path / "cut") == records(tmp_path / "whole")


def test_it_learns_and_evaluates(tmp_path: Path) -> None:
    before = Regression().evaluate()["error"]
    after = fit(Regression(), config(tmp_path, steps=80), quiet=True)["error"]
    assert after < 0.5 * before
    evaluated = [line["step"] for line in records(tmp_path) if "validation/error" in line]
    assert evaluated[:3] == [3, 7, 11]


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    first = fit(Regression(), config(tmp_path), quiet=True)
    assert fit(Regression(stop_at=0), config(tmp_path), quiet=True) == first


def test_a_diverging_run_stops_with_its_last_checkpoint_intact(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="nan at step 6: lower matrix_lr"):
        fit(Regression(nan_at=6), config(tmp_path), quiet=True)
    state = load_checkpoint(checkpoints(tmp_path)[-1])
    assert state["step"] == 6
    assert all(torch.isfinite(value).all() for value in state["module"].values())
    assert [line["step"] for line in records(tmp_path)] == list(range(6))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    fit(Regression(), config(tmp_path), quiet=True)
    with pytest.raises(CorruptCheckpoint, match="belongs to another model"):
        fit(Regression(width=5), config(tmp_path), quiet=True)
