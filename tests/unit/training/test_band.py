"""Banded windows are the windows that they stand for, many at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from megacontext.engine.substitution import encode_nodes
from megacontext.models import BaseLM, GistNet, GistNetConfig
from megacontext.models.positions import WindowRanks
from megacontext.training.band import Bands, band_layout, band_nll, draw_bands, needs_far
from megacontext.training.config import BaseShape
from megacontext.training.induction import build_base

VOCAB = 256


@pytest.fixture(scope="module")
def base() -> BaseLM:
    return BaseLM.wrap(build_base(BaseShape(width=48, head_dim=16, layers=2, context_length=512), vocab_size=VOCAB, eos=0))


def gistnet(base: BaseLM, vectors: int) -> GistNet:
    torch.manual_seed(0)
    return GistNet(GistNetConfig(width=base.width, output_rms=base.embedding_rms, heads=2, vectors=vectors))


@pytest.mark.parametrize(("vectors", "stride"), [(1, 1), (2, 6)])
def test_each_group_has_the_nll_of_its_own_window(base: BaseLM, vectors: int, stride: int) -> None:
    bands = Bands(starts=np.array([0, 2, 3, 5]), blocks=6)
    ids = torch.randint(1, VOCAB, (2, 6 * 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embeds = base.embed(ids)
        gists = encode_nodes(gistnet(base, vectors), embeds.view(2, 6, 32, -1)[:, : bands.gisted], 1)
        together = band_nll(base, embeds, gists, ids, bands, stride=stride)
        for start, stop in ((0, 2), (2, 3), (3, 5), (5, 6)):
            window = torch.cat([gists[:, :start].flatten(1, 2), embeds[:, start * 32 : stop * 32]], dim=1)
            spans = np.concatenate([np.arange(start).repeat(vectors) * 32, np.arange(start * 32, stop * 32)])
            ends = np.concatenate([np.arange(1, start + 1).repeat(vectors) * 32, np.arange(start * 32, stop * 32) + 1])
            positions = torch.from_numpy(WindowRanks(stride)(spans, ends, base.context_length))
            logits = base.forward(window, positions.expand(2, -1), logits_from=start * vectors).logits
            alone = F.cross_entropy(logits[:, :-1].mT, ids[:, start * 32 + 1 : stop * 32], reduction="none")
            torch.testing.assert_close(together[:, start * 32 : stop * 32 - 1], alone, atol=2e-4, rtol=2e-4)


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 6), st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_groups_cover_the_row_within_their_sizes(seed: int, blocks: int, least: int, more: int) -> None:
    bands = draw_bands(np.random.default_rng(seed), blocks=blocks, group=(least, least + more))
    sizes = np.diff(np.append(bands.starts, blocks))
    assert bands.starts[0] == 0 and sizes.sum() == blocks
    assert (sizes[:-1] >= least).all() and (sizes <= least + more).all()


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_nothing_is_seen_twice_or_from_the_future(seed: int) -> None:
    """Each raw slot sees every earlier block exactly once: as its gist, or raw in its own group."""
    bands = draw_bands(np.random.default_rng(seed), blocks=9, group=(1, 4))
    positions, allow = band_layout(bands, 1, 6)
    start = bands.group_start()
    for slot in range(0, 9 * 32, 17):
        row = allow[bands.gisted + slot]
        gists = torch.nonzero(row[: bands.gisted])[:, 0].tolist()
        raw = torch.nonzero(row[bands.gisted :])[:, 0].tolist()
        assert gists == list(range(start[slot // 32]))
        assert raw == list(range(start[slot // 32] * 32, slot + 1))
    assert int(positions.max()) < 9 * 32 + 6 * 9


def test_far_tokens_are_those_of_the_gisted_part_alone() -> None:
    bands = Bands(starts=np.array([0, 1]), blocks=2)
    ids = torch.arange(1, 65)[None].clone()
    ids[0, 40] = 5  # far only
    ids[0, 50] = ids[0, 45]  # near only
    ids[0, 55] = 5  # far, but also at 40
    assert torch.nonzero(needs_far(ids, bands)[0])[:, 0].tolist() == [39]
