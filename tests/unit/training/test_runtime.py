"""Device, precision and processes: what a machine lacks is named, and the numbers do not depend on who computes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regression_task
import torch
from regression_task import Regression, config, records, same, weights

from megacontext.errors import ConfigError
from megacontext.training.loop import fit
from megacontext.training.runtime import device_for, share_of


def test_one_process_under_accelerate_has_the_same_numbers(tmp_path: Path) -> None:
    plain = fit(Regression(), config(tmp_path / "plain", accumulate=2), quiet=True)
    under = fit(Regression(), config(tmp_path / "under", accumulate=2, accelerate=True), quiet=True)
    assert under == plain
    assert records(tmp_path / "under") == records(tmp_path / "plain")
    assert same(weights(tmp_path / "under"), weights(tmp_path / "plain"))


@pytest.mark.slow
def test_two_processes_have_the_numbers_of_one(tmp_path: Path) -> None:
    """Two micro-batches a step, one each; they go on from a leg that one process did, and stop early together."""
    more: dict[str, Any] = {"accumulate": 2, "stop_on": "error", "decay_from": 1.0}
    for name in ("one", "two"):
        fit(Regression(), config(tmp_path / name, steps=4, **more), quiet=True)
    more |= {"steps": 12, "better": "higher", "patience": 1}
    alone = fit(Regression(), config(tmp_path / "one", **more), quiet=True)
    launch(tmp_path / "two", more)
    assert alone.ended == "early" and alone.step == 8
    assert records(tmp_path / "two") == records(tmp_path / "one")
    assert same(weights(tmp_path / "two"), weights(tmp_path / "one"))


def launch(folder: Path, fields: dict[str, Any]) -> None:
    """Train in two processes on the CPU."""
    script = [str(Path(regression_task.__file__)), str(folder), json.dumps(fields)]
    options = ["--cpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    options += ["--num_cpu_threads_per_process=1", "--main_process_port=0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, *script]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("processes", "rank", "share"), [(1, 0, [0, 1, 2, 3]), (2, 1, [1, 3]), (4, 2, [2])])
def test_a_process_takes_its_share(processes: int, rank: int, share: list[int]) -> None:
    assert list(share_of(4, processes, rank)) == share


def test_micro_batches_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 micro-batches a step cannot be shared evenly by 2 processes: set accumulate to"):
        share_of(3, 2, 0)


def test_bf16_rounds_the_products_and_keeps_the_weights(tmp_path: Path) -> None:
    exact = fit(Regression(), config(tmp_path / "fp32", precision="fp32"), quiet=True)
    auto = fit(Regression(), config(tmp_path / "auto"), quiet=True)
    rounded = fit(Regression(), config(tmp_path / "bf16", precision="bf16"), quiet=True)
    assert auto == exact != rounded
    assert rounded.evaluation["error"] == pytest.approx(exact.evaluation["error"], rel=0.05)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "bf16").values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_a_gpu_that_is_not_there_is_missed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch sees no GPU here: set device to auto or cpu"):
        fit(Regression(), config(tmp_path, device="cuda"), quiet=True)
    assert device_for(config(tmp_path, device="auto")) == torch.device("cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_learns_in_bf16(tmp_path: Path) -> None:
    class Placed(Regression):
        def loss(self, step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
            inputs = torch.from_numpy(rng.standard_normal((16, 4))).float().cuda()
            wanted = inputs @ self._target.cuda()
            return (self.module(inputs).float() - wanted).square().mean(), {}

        def evaluate(self) -> dict[str, float]:
            inputs = torch.eye(4).cuda()
            return {"error": float((self.module(inputs) - self._target.cuda()).square().mean())}

    before = Regression().evaluate()["error"]
    after = fit(Placed(), config(tmp_path, steps=80, device="cuda", precision="bf16"), quiet=True).evaluation["error"]
    assert after < 0.5 * before


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match=r"pip install 'megacontext\[train\]'"):
        fit(Regression(), config(tmp_path, accelerate=True), quiet=True)
