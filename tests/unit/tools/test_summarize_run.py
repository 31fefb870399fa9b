"""Summaries of training runs: what the loop wrote, smaller, and without anything of the machine it ran on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from megacontext.errors import CorruptCheckpoint, DatasetError
from megacontext.training.config import RunConfig
from megacontext.training.loop import fit
from tools.summarize_run import as_json, main, summarize, trained


class Shrinking:
    """A real, tiny task: pull a weight towards zero; what is ``recovered`` falls as it does."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._net = nn.Linear(3, 1, bias=False)

    @property
    def module(self) -> nn.Module:
        return self._net

    def loss(self, step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        return self._net.weight.square().sum(), {}

    def evaluate(self) -> dict[str, float]:
        size = float(self._net.weight.square().sum())
        return {"full": size, "recovered/gist": size}

    def export(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, str(folder / "model.safetensors"))


def write(folder: Path, records: list[dict[str, Any]], **config: Any) -> Path:
    """A run's folder as the loop leaves it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"steps": len(records), "output": str(folder), **config}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def steps(**figures: list[float | None]) -> list[dict[str, Any]]:
    """One record a value, evaluated at each; None leaves the evaluation out."""
    count = len(next(iter(figures.values())))
    return [
        {"step": at, "loss": 4.0 - at, "seconds": 0.5}
        | {f"validation/{name.replace('__', '/')}": values[at] for name, values in figures.items() if values[at] is not None}
        for at in range(count)
    ]


def test_a_run_of_the_loop_is_summarised(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "w96" / "base"
    fit(Shrinking(), RunConfig(output=folder, steps=50, warmup=2, evaluate_every=20, checkpoint_every_s=1e9), quiet=True)
    found = summarize(folder, group="scaling")
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert (found["kind"], found["name"], found["group"], found["trains"]) == ("run", "w96-base", "scaling", "other")
    assert found["steps"] == 50 and found["finished"] and found["parameters"] == {"other": 17}
    assert found["curve"]["steps"] == [20, 40, 50]
    assert found["curve"]["figures"]["full"] == pytest.approx([logged[at]["validation/full"] for at in (19, 39, 49)], rel=1e-5)
    assert found["best"]["full"]["step"] == 50 and found["best"]["recovered/gist"]["step"] == 20
    assert found["chosen"]["step"] == 50
    assert found["seconds"] == pytest.approx(sum(record["seconds"] for record in logged), rel=1e-5)
    assert len(found["loss"]["loss"]) <= 40 and found["loss"]["steps"][-1] == 50
    assert found["loss"]["loss"][0] == pytest.approx((logged[0]["loss"] + logged[1]["loss"]) / 2, rel=1e-5)
    assert str(tmp_path) not in as_json(found) and found["config"]["output"] == "runs/w96/base"


def test_chosen_are_all_figures_of_the_exported_weights_and_not_the_best_of_each(tmp_path: Path) -> None:
    records = steps(gist=[3.0, 2.8, 2.9], recovered__gist=[0.1, 0.3, 0.4])
    watched = summarize(write(tmp_path / "one", records, stop_on="gist", better="lower"))
    assert watched["chosen"] == {"step": 2, "figures": {"gist": 2.8, "recovered/gist": 0.3}}
    higher = summarize(write(tmp_path / "two", records, stop_on="recovered/gist", better="higher"))
    assert higher["chosen"]["step"] == 3
    assert summarize(write(tmp_path / "three", records))["chosen"]["step"] == 3


def test_the_figures_before_training_are_the_curve_s_beginning(tmp_path: Path) -> None:
    records = steps(gist=[None, 2.8])
    records[0]["before/gist"] = 3.1
    found = summarize(write(tmp_path / "run", records, stop_on="gist"))
    assert found["curve"] == {"steps": [0, 2], "figures": {"gist": [3.1, 2.8]}}


@pytest.mark.parametrize(
    ("config", "kind", "tokens"),
    [
        ({"shape": {"context_length": 512}, "batch": 4}, "base", 3 * 4 * 512),
        ({"shape": {"context_length": 512}, "batch": 4, "accumulate": 2}, "base", 3 * 2 * 4 * 512),
        ({"plain_rows": 2, "gistnet": {}}, "native", None),
        ({"base": "b", "gistnet": {}}, "gist", None),
        ({"base": "b", "gistnet": "g", "train_items": 5}, "lens", None),
    ],
)
def test_tokens_are_told_where_they_are_known(tmp_path: Path, config: dict[str, Any], kind: str, tokens: int | None) -> None:
    records = steps(full=[3.0, 2.8, 2.9])
    assert trained(config) == kind
    assert summarize(write(tmp_path / "run", records, **config)).get("tokens") == tokens
    logged = [record | {"tokens": 7.0} for record in records]
    assert summarize(write(tmp_path / "logged", logged, **config))["tokens"] == 21


def test_a_line_cut_short_and_figures_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", steps(full=[3.0, float("nan")]), extra=[str(tmp_path / "data")])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    found = summarize(folder)
    assert found["steps"] == 2 and found["curve"]["figures"]["full"] == [3.0, None]
    assert found["best"]["full"] == {"value": 3.0, "step": 1}
    assert found["config"]["extra"] == ["data"]
    assert json.loads(as_json(found)) == found
    assert "[3.0, null]" in as_json(found)


def test_what_is_no_run_is_refused_with_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DatasetError, match="holds no training run"):
        summarize(tmp_path)
    damaged = write(tmp_path / "run", steps(full=[3.0, 2.0]))
    (damaged / "metrics.jsonl").write_text('{"step": 0, "loss"\n{"step": 1, "loss": 2}\n')
    with pytest.raises(CorruptCheckpoint, match="line 1"):
        summarize(damaged)
    (damaged / "metrics.jsonl").write_text("")
    assert main([str(damaged), "--into", str(tmp_path / "out")]) == 2
    assert "holds no step yet" in capsys.readouterr().err


def test_the_command_writes_one_file_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write(tmp_path / "runs" / name, steps(full=[3.0, 2.8])) for name in ("a", "b")]
    assert main([*map(str, folders), "--into", str(tmp_path / "out"), "--group", "g"]) == 0
    assert [Path(line).name for line in capsys.readouterr().out.split()] == ["a.json", "b.json"]
    assert json.loads((tmp_path / "out" / "b.json").read_text())["group"] == "g"
    assert main([str(folders[0]), "--into", str(tmp_path / "out"), "--name", "c"]) == 0
    assert json.loads((tmp_path / "out" / "c.json").read_text())["name"] == "c"
