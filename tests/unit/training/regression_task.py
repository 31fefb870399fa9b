"""A small real task for tests of the loop: fit a random linear map. Run as a script, it trains in FOLDER.

``python regression_task.py FOLDER JSON``: with further fields of the configuration; ``kill_at`` dies between the write
and the renaming of the checkpoint after that step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from megacontext.training.config import RunConfig
from megacontext.training.loop import fit


class Regression:
    """``stop_at`` interrupts in front of a step, ``nan_at`` poisons its loss, ``nan_gradient_at`` only its gradient.

    ``errors``: what evaluations report one after the other as ``planned``, by step, beside the real error.
    """

    def __init__(
        self,
        *,
        stop_at: int = -1,
        nan_at: int = -1,
        nan_gradient_at: int = -1,
        width: int = 4,
        planned: dict[int, float] | None = None,
    ) -> None:
        torch.manual_seed(5)
        self._net = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2))
        self._target = torch.randn(width, 2)
        self._stop_at, self._nan_at, self._nan_gradient_at = stop_at, nan_at, nan_gradient_at
        self._planned = planned
        self._steps = nn.Parameter(torch.zeros(1), requires_grad=False)
        self._net.register_parameter("steps", self._steps)

    @property
    def module(self) -> nn.Module:
        return self._net

    def loss(self, step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        if step == self._stop_at:
            raise KeyboardInterrupt
        self._steps.data.fill_(step + 1)
        inputs = torch.from_numpy(rng.standard_normal((16, len(self._target)))).float()
        loss = (self._net(inputs) - inputs @ self._target).square().mean()
        if step == self._nan_gradient_at:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss * float("nan") if step == self._nan_at else loss, {"first": float(inputs[0, 0])}

    def evaluate(self) -> dict[str, float]:
        inputs = torch.eye(len(self._target))
        error = float((self._net(inputs) - self._target).square().mean().detach())
        planned = {} if self._planned is None else {"planned": self._planned[int(self._steps)]}
        return {"error": error, **planned}

    def export(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(self._net.state_dict(), folder / "net.pt")


def config(folder: Path, *, every_s: float = -1.0, steps: int = 12, **more: Any) -> RunConfig:
    """A short run on the CPU that saves every step."""
    return RunConfig.model_validate(
        {"output": folder, "steps": steps, "warmup": 2, "evaluate_every": 4, "checkpoint_every_s": every_s, "device": "cpu"}
        | more
    )


def records(folder: Path) -> list[dict[str, float]]:
    """What was logged, times left out."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What was exported."""
    state: dict[str, torch.Tensor] = torch.load(folder / "model" / "net.pt")
    return state


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def _die_before_renaming(name: str) -> None:
    rename = Path.replace

    def dies(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.replace = dies  # type: ignore[method-assign]


if __name__ == "__main__":
    fields = json.loads(sys.argv[2])
    if "kill_at" in fields:
        _die_before_renaming(f"step-{fields.pop('kill_at'):08d}.pt")
    print(fit(Regression(), config(Path(sys.argv[1]), **fields), quiet=True).step)
