"""Whole runs with key/value gists, in miniature: native, adapters, and what a gist keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from corpus_files import config as corpus_config
from corpus_files import small_corpus
from pydantic import ValidationError

from megacontext.engine.bundle import load_bundle
from megacontext.errors import ConfigError
from megacontext.models.base_lm import BaseLM
from megacontext.models.encoders import load_gistnet
from megacontext.models.kv_gistnet import KeyValueGistNet
from megacontext.testing.tiny_models import byte_tokenizer
from megacontext.training.config import BaseShape, GistConfig, LookupShape, LoraShape, MixConfig, NativeConfig, WindowsConfig
from megacontext.training.gist import GistTask
from megacontext.training.induction import build_base
from megacontext.training.loop import fit
from megacontext.training.native import NativeTask
from megacontext.training.prepare import prepare

WINDOWS = WindowsConfig(far=128, tail=64, horizon=32, items=4)
MIX = MixConfig(rows=1, banded=1.0, blocks=6, group=(1, 2), far_weight=1.0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base that looks things up, untrained, and a prepared dataset."""
    folder = tmp_path_factory.mktemp("parts")
    prepare(corpus_config(small_corpus(folder)), byte_tokenizer(), folder / "data")
    model = build_base(BaseShape(width=96, layers=2, context_length=512), vocab_size=258, eos=256)
    model.save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    return folder / "base", folder / "data"


def native(parts: tuple[Path, Path], output: Path, **changes: object) -> NativeConfig:
    values = {"init": parts[0], "plain_rows": 1, "lookup": LookupShape()}
    return NativeConfig.model_validate(shared(parts, output) | values | changes)


def gist(parts: tuple[Path, Path], output: Path, **changes: object) -> GistConfig:
    values = {"base": parts[0], "lookup": LookupShape(layers=1, hidden=16, attention_heads=2)}
    return GistConfig.model_validate(shared(parts, output) | values | changes)


def shared(parts: tuple[Path, Path], output: Path) -> dict[str, object]:
    steps = {"steps": 2, "warmup": 1, "evaluate_every": 1}
    return {"dataset": parts[1], "output": output, "mix": MIX, "windows": WINDOWS, **steps}


def test_a_native_run_makes_a_bundle_that_belongs_together(parts: tuple[Path, Path], tmp_path: Path) -> None:
    chosen = native(parts, tmp_path / "run")
    outcome = fit(NativeTask(chosen), chosen, quiet=True)
    assert {"recovered/gist", "recovered/swapped"} <= set(outcome.evaluation)
    bundle = load_bundle(tmp_path / "run" / "model")
    assert isinstance(bundle.gists, KeyValueGistNet)
    assert bundle.gists.layout.layers == (1,)
    assert bundle.base.fingerprint != BaseLM.from_pretrained(parts[0]).fingerprint
    assert "lookup" not in (tmp_path / "run" / "model" / "base" / "config.json").read_text()


def test_adapters_alone_learn_and_are_merged(parts: tuple[Path, Path], tmp_path: Path) -> None:
    chosen = native(parts, tmp_path / "run", lora=LoraShape(rank=2), matrix_lr=0.05)
    task = NativeTask(chosen)
    learned = [name for name, value in task.module.named_parameters() if value.requires_grad]
    assert learned and all("lora_" in name for name in learned)
    fit(task, chosen, quiet=True)
    before = BaseLM.from_pretrained(parts[0]).model.state_dict()
    after = load_bundle(tmp_path / "run" / "model").base.model.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 2 for name in changed)
    assert "model.embed_tokens.weight" not in changed


def test_what_gists_keep_is_learned_and_bound_to_the_base(parts: tuple[Path, Path], tmp_path: Path) -> None:
    chosen = gist(parts, tmp_path / "run", matrix_lr=0.05, other_lr=0.05)
    task = GistTask(chosen)
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    fit(task, chosen, quiet=True)
    after = load_gistnet(tmp_path / "run" / "model")
    assert isinstance(after, KeyValueGistNet)
    assert after.config.base_fingerprint == BaseLM.from_pretrained(parts[0]).fingerprint
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}
    assert {"weights", "head.weight"} <= changed and "rarity" not in changed
    again = gist(parts, tmp_path / "again", init=tmp_path / "run" / "model")
    assert GistTask(again).module.state_dict()["weights"].tolist() == after.weights.tolist()


def test_gradients_prefer_what_helps(parts: tuple[Path, Path]) -> None:
    """The score of a kept pair rises where reading it lowers the loss: its gate has a gradient of that sign."""
    task = GistTask(gist(parts, Path("unused"), lookup=LookupShape(noise=0.0)))
    loss, _ = task.loss(0, np.random.default_rng(0))
    loss.backward()
    assert any(value.grad is not None and float(value.grad.abs().max()) > 0 for value in task.module.parameters())


def test_kinds_of_gists_are_not_mixed_up(parts: tuple[Path, Path], tmp_path: Path) -> None:
    chosen = gist(parts, tmp_path / "run", steps=1)
    fit(GistTask(chosen), chosen, quiet=True)
    with pytest.raises(ConfigError, match="key/value gists, the configuration is for embedded"):
        GistTask(gist(parts, tmp_path / "other", init=tmp_path / "run" / "model", lookup=None))
    with pytest.raises(ValidationError, match="banded"):
        gist(parts, tmp_path, mix=MixConfig(rows=1, banded=0.5))
    with pytest.raises(ValidationError, match="banded"):
        native(parts, tmp_path, gist_lr=0.1)
    with pytest.raises(ValidationError, match="give init"):
        native(parts, tmp_path, init=None, tokenizer=parts[0], lora=LoraShape())
