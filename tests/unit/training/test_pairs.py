"""Paired batches: the gists beside the tokens are those of these very blocks, made once and kept."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from slice_files import small_slices

from megacontext.errors import ConfigError
from megacontext.models import BaseLM, GistNet, GistNetConfig
from megacontext.models.gist_baselines import MeanPoolGist
from megacontext.testing.tiny_models import WIDTH, tiny_base
from megacontext.training.pairs import PairedSlices
from megacontext.training.slices import Slices


@pytest.fixture
def slices(tmp_path: Path) -> Slices:
    return small_slices(tmp_path)


def gistnet(base: BaseLM, seed: int = 0) -> GistNet:
    torch.manual_seed(seed)
    net = GistNet(GistNetConfig(width=WIDTH, output_rms=base.embedding_rms, heads=2, layers=1, vectors=2))
    with torch.no_grad():
        for parameter in net.parameters():  # a fresh one starts as the mean, whatever its seed
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def test_gists_are_those_of_the_blocks_beside_them(slices: Slices, tmp_path: Path) -> None:
    base = tiny_base()
    encoder = gistnet(base)
    paired = PairedSlices(slices, base, encoder, tmp_path / "cache", chunk=3)
    filled = int(np.flatnonzero((slices.fill < 32).any(axis=1))[0])
    batch = paired.take(np.array([filled, 0]))
    assert batch.ids.shape == (2, 4, 32) and batch.gists.shape == (2, 4, 2, WIDTH) and batch.horizon.shape == (2, 10)
    assert batch.gists.dtype == torch.float16 and len(batch) == 2
    assert (batch.ids[0].numpy() == slices.ids[filled]).all() and (batch.horizon[1].numpy() == slices.horizon[0]).all()
    assert (batch.fill < 32).any()
    mask = torch.arange(32) < batch.fill.flatten()[:, None]
    with torch.no_grad():
        direct = encoder.encode_canonical(base.embed(batch.ids.flatten(0, 1)), mask, 1)
    assert torch.equal(batch.gists.flatten(0, 1), direct)


def test_blocks_that_slices_share_are_encoded_once(slices: Slices, tmp_path: Path) -> None:
    told: list[int] = []
    base = tiny_base()
    paired = PairedSlices(slices, base, MeanPoolGist(WIDTH, 1.0), tmp_path, progress=told.append)
    blocks = {block for start in slices.start.tolist() for block in range(start, start + 4)}
    assert sum(told) == len(blocks) < 4 * len(slices)
    one, two = paired.take(np.array([0])), paired.take(np.array([1]))
    assert slices.start[1] == slices.start[0] + 2
    assert torch.equal(one.gists[0, 2:], two.gists[0, :2])


def test_every_encoder_has_a_folder_of_its_own_and_is_read_again(slices: Slices, tmp_path: Path) -> None:
    base = tiny_base()
    encoders = [gistnet(base, seed) for seed in (0, 1)]
    first = [PairedSlices(slices, base, each, tmp_path / "cache").take(np.arange(2)).gists for each in encoders]
    assert not torch.equal(first[0], first[1])
    folders = list((tmp_path / "cache").iterdir())
    assert len(folders) == 2 and all(any(each.fingerprint[:16] in f.name for f in folders) for each in encoders)
    told: list[int] = []
    again = PairedSlices(slices, base, encoders[0], tmp_path / "cache", progress=told.append)
    assert len(told) == 1 and torch.equal(again.take(np.arange(2)).gists, first[0])


def test_an_epoch_has_every_slice_once(slices: Slices, tmp_path: Path) -> None:
    paired = PairedSlices(slices, tiny_base(), MeanPoolGist(WIDTH, 1.0), tmp_path)
    ordered = [batch.rows.tolist() for batch in paired.batches(3)]
    assert list(chain(*ordered)) == list(range(len(slices))) and {len(rows) for rows in ordered[:-1]} == {3}
    one, two = ([batch.rows.tolist() for batch in paired.batches(3, np.random.default_rng(1))] for _ in range(2))
    assert one == two != ordered and sorted(chain(*one)) == list(chain(*ordered))
    with pytest.raises(ConfigError, match="at least 1"):
        next(paired.batches(0))
