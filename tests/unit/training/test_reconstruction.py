"""Training for reconstruction: it learns, through the ordinary loop, and its figures have controls that would expose them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from megacontext.errors import ConfigError, ModelMismatch
from megacontext.evaluation.reconstruction import load_head, reconstruction
from megacontext.models import BaseLM, GistNet
from megacontext.models.base_lm import BaseLM as Base
from megacontext.testing.tiny_models import EOS, save_tiny
from megacontext.training.commands import run_reconstruct
from megacontext.training.dataset import load_split, write_manifest
from megacontext.training.reconstruction import ReconstructConfig, ReconstructTask, common_tokens, reconstruction_loss

SMALL = {"gistnet": {"hidden": 32, "layers": 1, "heads": 2}, "head": {"hidden": 32, "layers": 1, "heads": 2}}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks that are easy to squeeze: eight letters, each twice in a row; some blocks are not full."""
    folder = tmp_path_factory.mktemp("data")
    for seed, (split, count) in enumerate({"train": 600, "validation": 60, "test": 60}.items()):
        rng = np.random.default_rng(seed)
        fill = np.where(rng.random(count) < 0.1, 20, 32).astype(np.uint8)
        ids = np.repeat(rng.integers(97, 105, size=(count, 16)), 2, axis=1).astype(np.uint16)
        ids[np.arange(32) >= fill[:, None]] = EOS
        document = (np.arange(count) // 10).astype(np.uint32)
        tensors = {"ids": ids, "fill": fill, "document": document, "package": document // 2}
        save_file(tensors, str(folder / f"{split}.safetensors"))
    write_manifest(folder, {"vocab_size": 258, "splits": {}})
    return folder


def config(base_folder: Path, dataset: Path, output: Path, **changes: object) -> ReconstructConfig:
    values = {"steps": 10, "batch": 32, "other_lr": 0.003, "evaluate_every": 1000, **SMALL, **changes}
    return ReconstructConfig(base=base_folder, dataset=dataset, output=output, **values)


@pytest.fixture(scope="module")
def trained(base_folder: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("run")
    written = config(base_folder, dataset, folder / "out", steps=80)
    (folder / "run.yaml").write_text(json.dumps(json.loads(written.model_dump_json())))
    result = run_reconstruct(folder / "run.yaml", quiet=True)
    return Path(result["output"]), result["validation"]


def test_it_learns_beyond_every_control(
    trained: tuple[Path, dict[str, float]], base_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    fresh = ReconstructTask(config(base_folder, dataset, tmp_path)).evaluate()
    figures = trained[1]
    assert figures["nll"] < np.log(8) - 0.2 < fresh["nll"]
    assert figures["reconstructed"] > 0.3 > figures["reconstructed_swapped"]
    assert figures["reconstructed"] > figures["reconstructed_common"] + 0.1


def test_the_report_covers_the_whole_split_with_intervals(
    trained: tuple[Path, dict[str, float]], base_folder: Path, dataset: Path
) -> None:
    folder = trained[0]
    found = json.loads((folder / "reconstruction.json").read_text())
    validation = load_split(dataset, "validation")
    assert found["blocks"] == 60 and found["scored"] == int(validation.fill.sum())
    assert found["tokens"] == pytest.approx(trained[1]["reconstructed"], abs=0.02)
    for name in ("tokens", "swapped", "common"):
        low, high = found[f"{name}_ci"]
        assert low <= found[name] <= high
    assert found["tokens_minus_common_ci"][0] > 0
    base, net = BaseLM.from_pretrained(base_folder), GistNet.from_pretrained(folder)
    head = load_head(folder, net, base)
    assert head is not None
    live = np.arange(32) < validation.fill[:, None]
    again = reconstruction(head, base, net, validation.ids.astype(np.int64), live, validation.document.astype(np.int64), seed=0)
    assert json.loads(json.dumps(again)) == found


def test_a_head_reads_only_the_gists_that_it_was_trained_on(
    trained: tuple[Path, dict[str, float]], base_folder: Path, tmp_path: Path
) -> None:
    base, net = Base.from_pretrained(base_folder), GistNet.from_pretrained(trained[0])
    assert load_head(tmp_path, net, base) is None
    with torch.no_grad():
        net.norm.weight.mul_(1.5)
    with pytest.raises(ModelMismatch, match="another GistNet"):
        load_head(trained[0], net, base)


def test_the_head_alone_leaves_the_gistnet_as_it_is(
    trained: tuple[Path, dict[str, float]], base_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    task = ReconstructTask(config(base_folder, dataset, tmp_path, init=trained[0], train_gistnet=False, report=False))
    loss, _ = task.loss(0, np.random.default_rng(0))
    loss.backward()
    touched = {name.partition(".")[0] for name, p in task.module.named_parameters() if p.grad is not None}
    assert touched == {"head"}
    task.export(tmp_path / "model")
    assert GistNet.from_pretrained(tmp_path / "model").fingerprint == GistNet.from_pretrained(trained[0]).fingerprint
    with pytest.raises(ConfigError, match="needs init"):
        ReconstructTask(config(base_folder, dataset, tmp_path, train_gistnet=False))


def test_the_loss_counts_live_tokens_at_the_chosen_places(base_folder: Path, dataset: Path, tmp_path: Path) -> None:
    task = ReconstructTask(config(base_folder, dataset, tmp_path))
    head, ids = task.module["head"], torch.full((2, 32), 7)
    live = torch.ones(2, 32, dtype=torch.bool)
    live[1, 5:] = False
    gists, table = torch.randn(2, 1, head.config.width), torch.randn(258, head.config.width)
    head.requires_grad_(False)
    nll = torch.nn.functional.cross_entropy(head.logits(gists, table).mT, ids, reduction="none")
    assert float(reconstruction_loss(head, gists, ids, live, table)) == pytest.approx(float(nll[live].mean()), abs=1e-5)
    places = torch.tensor([2, 9])
    expected = (nll[0, 2] + nll[1, 2] + nll[0, 9]) / 3
    assert float(reconstruction_loss(head, gists, ids, live, table, places=places)) == pytest.approx(float(expected), abs=1e-5)


def test_the_common_token_of_each_place_is_counted_on_live_tokens(dataset: Path) -> None:
    train = load_split(dataset, "train")
    found = common_tokens(train, 258)
    assert found.shape == (32,) and EOS not in found
    column = train.ids[train.fill > 30, 30]
    assert (column == found[30]).sum() == np.bincount(column).max()
