"""What GistNet training starts from, what it leaves alone, and which of its weights are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from corpus_files import config as corpus_config
from corpus_files import small_corpus

from megacontext.models import BaseLM, GistNet, GistNetConfig
from megacontext.testing.tiny_models import byte_tokenizer, save_tiny
from megacontext.training.config import GistConfig, GistNetShape, MixConfig, WindowsConfig
from megacontext.training.gist import GistTask
from megacontext.training.loop import fit
from megacontext.training.prepare import prepare

WINDOWS = WindowsConfig(far=128, tail=32, horizon=16, items=3)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A frozen base and a prepared dataset."""
    folder = tmp_path_factory.mktemp("parts")
    prepare(corpus_config(small_corpus(folder)), byte_tokenizer(), folder / "data")
    return save_tiny(folder / "base"), folder / "data"


def config(parts: tuple[Path, Path], output: Path, **changes: object) -> GistConfig:
    values = {
        "base": parts[0],
        "dataset": parts[1],
        "output": output,
        "steps": 4,
        "warmup": 1,
        "evaluate_every": 1,
        "gistnet": GistNetShape(heads=2, layers=1, hidden=16, pools=2),
        "mix": MixConfig(rows=2, far=(2, 4), tail=4, lod2=0.5, most_spans=1),
        "windows": WINDOWS,
    }
    return GistConfig.model_validate(values | changes)


def save_gistnet(base: Path, folder: Path) -> Path:
    """A GistNet as another base's training would have left it."""
    loaded = BaseLM.from_pretrained(base)
    torch.manual_seed(5)
    shape = GistNetShape(heads=2, layers=1, hidden=16, pools=2).model_dump(exclude={"primed", "frozen_values"})
    GistNet(
        GistNetConfig(width=loaded.width, output_rms=loaded.embedding_rms, base_fingerprint="another", **shape)
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("frozen", [True, False])
def test_a_gistnet_to_go_on_from_keeps_what_it_writes_where_that_is_frozen(
    parts: tuple[Path, Path], tmp_path: Path, frozen: bool
) -> None:
    init = save_gistnet(parts[0], tmp_path / "init")
    shape = GistNetShape(frozen_values=frozen)
    chosen = config(parts, tmp_path / "run", init=init, gistnet=shape)
    fit(GistTask(chosen), chosen, quiet=True)
    before, after = GistNet.from_pretrained(init), GistNet.from_pretrained(tmp_path / "run" / "model")
    for name in ("value", "before", "before_that"):
        was, became = (net.readout.get_parameter(f"{name}.weight") for net in (before, after))
        assert torch.equal(was, became) == frozen, name
    score = "readout.score.weight"
    assert not torch.equal(before.get_parameter(score), after.get_parameter(score))
    assert after.config.base_fingerprint == BaseLM.from_pretrained(parts[0]).fingerprint


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_the_weights_with_the_best_recovered_fraction_are_exported(
    parts: tuple[Path, Path], tmp_path: Path, better: str
) -> None:
    chosen = config(parts, tmp_path / "run", stop_on="recovered/gist", better=better, matrix_lr=0.2, other_lr=0.05)
    outcome = fit(GistTask(chosen), chosen, quiet=True)
    lines = [json.loads(line) for line in (chosen.output / "metrics.jsonl").read_text().splitlines()]
    seen = [lines[0]["before/recovered/gist"], *(line["validation/recovered/gist"] for line in lines)]
    assert len(set(seen)) == len(seen)
    best = max(seen) if better == "higher" else min(seen)
    assert outcome.exported == seen.index(best)
    assert outcome.evaluation["recovered/gist"] == best
    task = GistTask(config(parts, tmp_path / "again", init=chosen.output / "model"))
    assert task.evaluate()["recovered/gist"] == pytest.approx(best, abs=1e-6)
