"""GistNet training is a function of its configuration: the same seed, the same weights, however often it is interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus_files import config as corpus_config
from corpus_files import small_corpus
from safetensors.torch import load_file
from torch import Tensor

from megacontext.testing.tiny_models import byte_tokenizer, save_tiny
from megacontext.training.config import GistConfig, GistNetShape, MixConfig, WindowsConfig
from megacontext.training.gist import GistTask
from megacontext.training.loop import fit
from megacontext.training.prepare import prepare

STEPS = 6


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A frozen base and a prepared dataset."""
    folder = tmp_path_factory.mktemp("parts")
    prepare(corpus_config(small_corpus(folder)), byte_tokenizer(), folder / "data")
    return save_tiny(folder / "base"), folder / "data"


def config(parts: tuple[Path, Path], output: Path, *, seed: int = 0) -> GistConfig:
    return GistConfig(
        base=parts[0],
        dataset=parts[1],
        output=output,
        seed=seed,
        steps=STEPS,
        warmup=2,
        evaluate_every=3,
        checkpoint_every_s=-1.0,
        gistnet=GistNetShape(heads=2, layers=1),
        mix=MixConfig(rows=2, far=(4, 6), tail=4, lod2=0.5, most_spans=1),
        windows=WindowsConfig(far=128, tail=32, horizon=16, items=3),
    )


class Interrupted(GistTask):
    """The real task, stopped before the step ``at`` as Ctrl-C would stop it."""

    def __init__(self, config: GistConfig, at: int) -> None:
        super().__init__(config)
        self._at = at

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        if step == self._at:
            raise KeyboardInterrupt
        return super().loss(step, rng)


def weights(output: Path) -> dict[str, Tensor]:
    return dict(load_file(str(output / "model" / "model.safetensors")))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def figures(output: Path) -> list[dict[str, Any]]:
    """Every logged figure but the times."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("second")} for line in lines]


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(parts: tuple[Path, Path], tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        fit(GistTask(config(parts, tmp_path / name, seed=seed)), config(parts, tmp_path / name, seed=seed), quiet=True)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "again"))
    assert figures(tmp_path / "one") == figures(tmp_path / "again")
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "other"))


@pytest.mark.parametrize("at", [1, STEPS - 1])
def test_a_resumed_training_gives_the_weights_of_an_undisturbed_one(parts: tuple[Path, Path], tmp_path: Path, at: int) -> None:
    whole, cut = config(parts, tmp_path / "whole"), config(parts, tmp_path / "cut")
    fit(GistTask(whole), whole, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        fit(Interrupted(cut, at), cut, quiet=True)
    assert len(figures(cut.output)) == at
    fit(GistTask(cut), cut, quiet=True)
    assert same(weights(whole.output), weights(cut.output))
    assert figures(whole.output) == figures(cut.output)
