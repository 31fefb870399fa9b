"""What GistNet training starts from, what it leaves alone, and which of its weights are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus_files import config as corpus_config
from corpus_files import small_corpus
from pydantic import ValidationError

from megacontext.errors import ConfigError, ModelMismatch
from megacontext.models import BaseLM, GistNet, GistNetConfig
from megacontext.testing.tiny_models import byte_tokenizer, save_tiny
from megacontext.training.batches import draw_batch
from megacontext.training.config import (
    GistConfig,
    GistNetShape,
    MixConfig,
    NativeConfig,
    TeacherConfig,
    WindowsConfig,
)
from megacontext.training.curriculum import Curriculum
from megacontext.training.dataset import load_split
from megacontext.training.diagnostics import gist_statistics
from megacontext.training.gist import GistTask, GistWindows, new_gistnet, validation_items
from megacontext.training.loop import fit
from megacontext.training.loss_mix import LossMix
from megacontext.training.native import NativeTask
from megacontext.training.prepare import prepare
from megacontext.training.reconstruction import HeadShape, ReconstructConfig, ReconstructTask
from megacontext.training.slices import SliceConfig, write_slices

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
        "gistnet": GistNetShape(heads=2, layers=1, hidden=16),
        "mix": MixConfig(rows=2, far=(2, 4), tail=4, lod2=0.5, most_spans=1),
        "windows": WINDOWS,
    }
    return GistConfig.model_validate(values | changes)


def save_gistnet(base: Path, folder: Path, *, trained_for: str = "another") -> Path:
    """A GistNet as the training for some base would have left it."""
    loaded = BaseLM.from_pretrained(base)
    torch.manual_seed(5)
    shape = GistNetShape(heads=2, layers=1, hidden=16).model_dump()
    GistNet(
        GistNetConfig(width=loaded.width, output_rms=loaded.embedding_rms, base_fingerprint=trained_for, **shape)
    ).save_pretrained(folder)
    return folder


def test_a_gistnet_to_go_on_from_is_trained_and_bound_to_the_base(parts: tuple[Path, Path], tmp_path: Path) -> None:
    init = save_gistnet(parts[0], tmp_path / "init")
    chosen = config(parts, tmp_path / "run", init=init)
    fit(GistTask(chosen), chosen, quiet=True)
    before, after = GistNet.from_pretrained(init), GistNet.from_pretrained(tmp_path / "run" / "model")
    score = "readout.score.weight"
    assert not torch.equal(before.get_parameter(score), after.get_parameter(score))
    assert after.config.base_fingerprint == BaseLM.from_pretrained(parts[0]).fingerprint


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_the_weights_with_the_best_recovered_fraction_are_exported(
    parts: tuple[Path, Path], tmp_path: Path, better: str
) -> None:
    chosen = config(parts, tmp_path / "run", stop_on="recovered/gist", better=better, matrix_lr=0.2, other_lr=0.05)
    outcome = fit(GistTask(chosen), chosen, quiet=True)
    logged = lines(chosen.output)
    seen = [logged[0]["before/recovered/gist"], *(line["validation/recovered/gist"] for line in logged)]
    assert len(set(seen)) == len(seen)
    best = max(seen) if better == "higher" else min(seen)
    assert outcome.exported == seen.index(best)
    assert outcome.evaluation["recovered/gist"] == best
    task = GistTask(config(parts, tmp_path / "again", init=chosen.output / "model"))
    assert task.evaluate()["recovered/gist"] == pytest.approx(best, abs=1e-6)


ALL = LossMix(kl=0.5, hidden=0.5, contrastive=0.5)
COURSE = Curriculum(far=(2, 4), gists=(1, 4), raw=(0.5, 0.0), levels=1, easy=0.0)


def lines(output: Path) -> list[dict[str, Any]]:
    """What was logged, without times."""
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("second")} for line in logged]


def test_losses_and_stages_are_logged_and_survive_an_interruption(parts: tuple[Path, Path], tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "loss": ALL,
        "curriculum": COURSE,
        "mix": MixConfig(rows=2, tail=4, lod2=0.0),
        "evaluate_every": 100,
        "checkpoint_every_s": -1.0,
        "steps": 3,
    }
    whole = config(parts, tmp_path / "whole", **changes)
    fit(GistTask(whole), whole, quiet=True)
    logged = lines(whole.output)
    assert [line["stage/span"] for line in logged][::2] == [4.0, 32.0]
    for line in logged:
        parts_of = [line[f"loss/{name}"] for name in ("nll", "kl", "hidden", "contrastive")]
        assert line["loss"] == pytest.approx(parts_of[0] + 0.5 * sum(parts_of[1:]), rel=1e-5)
        assert "loss/reconstruction" not in line
    cut = config(parts, tmp_path / "cut", **{**changes, "stop_after_s": 1e-9})
    for _ in range(3):
        fit(GistTask(cut), cut, quiet=True)
    assert lines(cut.output) == logged


def test_every_evaluation_says_what_the_gists_look_like(parts: tuple[Path, Path], tmp_path: Path) -> None:
    task = GistTask(config(parts, tmp_path))
    figures = task.evaluate()
    base, net, items = BaseLM.from_pretrained(parts[0]), task.module, validation_items(parts[1], WINDOWS, seed=0)
    assert isinstance(net, GistNet)
    blocks = torch.from_numpy(items.ids[:, :128]).reshape(-1, 32)
    gists = net.encode_canonical(base.embed(blocks), torch.ones(len(blocks), 32, dtype=torch.bool), 1)
    rms = float(base.embed(torch.from_numpy(items.ids)).square().mean().sqrt())
    expected = gist_statistics(gists, rms)
    assert {f"gists/{name}": value for name, value in expected.items()} == pytest.approx(
        {name: value for name, value in figures.items() if name.startswith("gists/")}, rel=1e-4
    )
    assert not any(name.startswith("gists/") for name in GistWindows(parts[1], WINDOWS, seed=0).evaluate(base, None))


def test_a_cached_teacher_gives_the_windows(parts: tuple[Path, Path], tmp_path: Path) -> None:
    write_slices(parts[1], tmp_path / "slices", SliceConfig(context_length=192, stride=96, horizon=32))
    teacher = TeacherConfig(slices=tmp_path / "slices", cache=tmp_path / "cache")
    changes = {"loss": LossMix(nll=0.5, kl=1.0), "teacher": teacher, "curriculum": COURSE, "evaluate_every": 100, "steps": 2}
    chosen = config(parts, tmp_path / "run", **changes)
    fit(GistTask(chosen), chosen, quiet=True)
    assert all(line["loss/kl"] > 0 for line in lines(chosen.output))
    assert json.loads((tmp_path / "cache" / "cache.json").read_text())["done"] > 0


def test_a_reconstruction_loss_reads_with_the_head_that_belongs_to_init(parts: tuple[Path, Path], tmp_path: Path) -> None:
    init, wanted = save_gistnet(parts[0], tmp_path / "init", trained_for=""), LossMix(reconstruction=1.0)
    with pytest.raises(ConfigError, match="train one with megacontext train reconstruct"):
        GistTask(config(parts, tmp_path, init=init, loss=wanted))
    reading = ReconstructConfig(
        base=parts[0],
        dataset=parts[1],
        output=tmp_path / "reading",
        init=init,
        train_gistnet=False,
        head=HeadShape(hidden=32, heads=2, layers=1),
        steps=1,
        report=False,
    )
    ReconstructTask(reading).export(tmp_path / "read")
    chosen = config(parts, tmp_path / "run", init=tmp_path / "read", loss=wanted, steps=2, evaluate_every=100)
    fit(GistTask(chosen), chosen, quiet=True)
    assert all(line["loss/reconstruction"] > 0 for line in lines(chosen.output))
    other = GistNet.from_pretrained(tmp_path / "read")
    with torch.no_grad():
        other.norm.weight.mul_(1.5)
    other.save_pretrained(tmp_path / "read")
    with pytest.raises(ModelMismatch, match="another GistNet"):
        GistTask(chosen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": LossMix(reconstruction=1)}, "the head beside the GistNet in init"),
        ({"curriculum": COURSE, "mix": MixConfig(banded=1.0)}, "mix.banded: 1 draws none"),
        ({"curriculum": Curriculum(levels=3)}, "set curriculum.levels to 2"),
        ({"teacher": TeacherConfig(slices=Path("s"), cache=Path("c")), "loss": LossMix(hidden=1)}, "loss.hidden to 0"),
    ],
)
def test_what_cannot_be_trained_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config((Path("base"), Path("data")), Path("run"), **changes)


def test_a_teacher_that_cannot_read_the_windows_is_refused_at_once(parts: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="up to 1280 tokens here, but it was made for 512"):
        GistTask(config(parts, tmp_path, loss=LossMix(kl=1.0)))
    GistTask(config(parts, tmp_path, loss=LossMix(kl=1.0), mix=MixConfig(rows=2, far=(2, 4), tail=4, lod2=0.0)))


def test_native_training_takes_the_losses_that_move_something() -> None:
    values = {"dataset": "data", "init": "base", "output": "run", "steps": 1}
    assert NativeConfig.model_validate(values | {"loss": {"kl": 1.0, "hidden": 0.1}}).loss.wanted == {
        "nll": 1.0,
        "kl": 1.0,
        "hidden": 0.1,
    }
    with pytest.raises(ValidationError, match="give it a gist_lr"):
        NativeConfig.model_validate(values | {"loss": {"contrastive": 1.0}})
    assert NativeConfig.model_validate(values | {"loss": {"contrastive": 1.0}, "gist_lr": 0.1}).loss.contrastive == 1.0
    with pytest.raises(ValidationError, match="train gist"):
        NativeConfig.model_validate(values | {"loss": {"reconstruction": 1.0}})


def test_native_training_distils_a_base_s_own_reading(parts: tuple[Path, Path], tmp_path: Path) -> None:
    chosen = NativeConfig(
        dataset=parts[1],
        init=parts[0],
        output=tmp_path / "run",
        steps=1,
        plain_rows=1,
        gistnet=GistNetShape(heads=2, layers=1, hidden=16),
        mix=MixConfig(rows=1, banded=1.0, blocks=6, group=(1, 2)),
        loss=LossMix(kl=0.5),
        windows=WINDOWS,
    )
    loss, figures = NativeTask(chosen).loss(0, np.random.default_rng(0))
    assert figures["gist"] == pytest.approx(figures["loss/nll"] + 0.5 * figures["loss/kl"], rel=1e-5)
    assert float(loss.detach()) == pytest.approx(figures["plain"] + figures["gist"], rel=1e-5) and figures["loss/kl"] > 0


@pytest.mark.parametrize("banded", [0.0, 1.0])
def test_recall_lines_are_told_behind_gists_and_asked_for_in_the_open(parts: tuple[Path, Path], banded: float) -> None:
    base = BaseLM.from_pretrained(parts[0])
    train = load_split(parts[1], "train")
    gistnet = new_gistnet(base, GistNetShape(heads=2, layers=1, hidden=16), base_fingerprint="")
    mix = MixConfig(rows=2, banded=banded, blocks=12, group=(1, 2), far=(6, 8), tail=4, lod2=0.0, repeats=0.0, recall=1.0)
    plain, asked = (
        draw_batch(base, gistnet, train, np.random.default_rng(3), mix.model_copy(update={"recall": share})).ids
        for share in (0.0, 1.0)
    )
    texts = [base.tokenizer.decode(row.tolist()) for row in asked]
    assert plain.shape == asked.shape and not torch.equal(plain, asked)
    assert all("assert " in text for text in texts)
