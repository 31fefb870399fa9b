"""Substituted windows: right slots, plain NLL where nothing is replaced, and a gradient to every gist."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from megacontext.core import substitution_patterns
from megacontext.engine.substitution import Pattern, draw_pattern, encode_pattern, slot_positions, token_nll
from megacontext.models.base_lm import BaseLM
from megacontext.models.gistnet import GistNet
from megacontext.testing.tiny_bundle import tiny_gistnet
from megacontext.testing.tiny_models import tiny_base


@pytest.fixture(scope="module")
def base() -> BaseLM:
    return tiny_base("llama", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def gistnet(base: BaseLM) -> Iterator[GistNet]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = tiny_gistnet(base)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        yield net


def tokens(blocks: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (rows, blocks * 32), generator=torch.Generator().manual_seed(blocks))


def spans_then(spans: int, *lods: int) -> Pattern:
    return Pattern(lod=np.concatenate([np.full(32 * spans, 2), np.array(lods, dtype=np.int64)]).astype(np.int64))


@given(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.integers(0, 2))
def test_slots_tile_the_window_in_order(lods: list[int], spans: int) -> None:
    pattern = spans_then(spans, *lods)
    index, start, stop, token = pattern.slots()
    assert start[0] == 0 and stop[-1] == 32 * len(pattern.lod)
    assert (start[1:] == stop[:-1]).all()
    raw = token >= 0
    assert (stop - start)[raw].tolist() == [1] * int(raw.sum()) and (token[raw] == start[raw]).all()
    assert sorted((stop - start)[~raw].tolist()) == sorted([32] * sum(lods) + [1024] * spans)
    assert len(set(index.tolist())) == len(index)


def test_every_pattern_of_a_span_costs_what_it_should() -> None:
    for lod in substitution_patterns((0, 6)):
        index, *_ = Pattern(lod=lod.astype(np.int64)).slots()
        assert len(index) == sum(1 if gist else 32 for gist in lod.tolist())


@pytest.mark.parametrize("lod", [[2] * 31, [0] + [2] * 32])
def test_lod2_needs_whole_aligned_spans(lod: list[int]) -> None:
    with pytest.raises(ValueError, match="32 aligned blocks"):
        Pattern(lod=np.array(lod))


def test_raw_windows_have_the_plain_nll(base: BaseLM, gistnet: GistNet) -> None:
    ids = tokens(4)
    pattern = Pattern(lod=np.zeros(4, dtype=np.int64))
    pool = encode_pattern(pattern, base.embed(ids), gistnet)
    with torch.no_grad():
        logits = base.model(input_ids=ids[:, :-1], use_cache=False).logits
        plain = F.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
        for absolute in (False, True):
            ours = token_nll(base, pool, ids, pattern, absolute=absolute)
            torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
            tail = token_nll(base, pool, ids, pattern, absolute=absolute, scored=40)
            torch.testing.assert_close(tail, plain[:, -40:], atol=1e-4, rtol=1e-4)


def test_only_raw_tokens_are_predicted(base: BaseLM, gistnet: GistNet) -> None:
    ids, pattern = tokens(5), Pattern(lod=np.array([0, 1, 0, 1, 0]))
    pool = encode_pattern(pattern, base.embed(ids), gistnet)
    with torch.no_grad():
        assert token_nll(base, pool, ids, pattern, absolute=False).shape == (2, 3 * 32 - 1)


@pytest.mark.parametrize("absolute", [False, True])
def test_the_gradient_reaches_every_gist(base: BaseLM, gistnet: GistNet, absolute: bool) -> None:
    pattern = spans_then(1, 1, 0, 1, 1, 0)
    ids = tokens(len(pattern.lod))
    pool = encode_pattern(pattern, base.embed(ids), gistnet).detach().requires_grad_(True)
    loss = token_nll(base, pool, ids, pattern, absolute=absolute, scored=16).mean()
    (gradient,) = torch.autograd.grad(loss, pool)
    index, _, _, token = pattern.slots()
    shown = torch.from_numpy(index[token < 0])
    assert len(shown) == 4
    assert (gradient[:, shown].abs().amax(-1) > 0).all()
    hidden = np.setdiff1d(np.arange(pool.shape[1]), index)
    assert not gradient[:, torch.from_numpy(hidden)].any()


def test_the_gradient_reaches_the_gistnet_through_both_levels(base: BaseLM, gistnet: GistNet) -> None:
    pattern = spans_then(1, 0)
    ids = tokens(len(pattern.lod), rows=1)
    loss = token_nll(base, encode_pattern(pattern, base.embed(ids), gistnet), ids, pattern, absolute=False).mean()
    levels = gistnet.get_parameter("level.weight")
    (gradient,) = torch.autograd.grad(loss, levels)
    assert gradient[0].any() and gradient[1].any()


def test_gists_are_those_of_their_own_blocks(base: BaseLM, gistnet: GistNet) -> None:
    ids, pattern = tokens(6), Pattern(lod=np.array([1, 0, 0, 1, 1, 0]))
    with torch.no_grad():
        before = encode_pattern(pattern, base.embed(ids), gistnet)
        changed = ids.clone()
        changed[:, 3 * 32] = (changed[:, 3 * 32] + 1) % 256
        after = encode_pattern(pattern, base.embed(changed), gistnet)
    moved = (before - after).abs().amax(-1)[:, 6 * 32 :] > 1e-6
    assert moved.tolist() == [[False, True, False]] * 2


def test_patterns_are_drawn_within_their_bounds() -> None:
    for seed in range(30):
        pattern = draw_pattern(np.random.default_rng(seed), far=10, tail=4, spans=seed % 3, all_gists=0.5)
        assert len(pattern.lod) == 32 * (seed % 3) + 14
        assert not pattern.lod[-4:].any() and len(pattern.heads) == seed % 3
    assert draw_pattern(np.random.default_rng(0), far=10, tail=4, spans=0, all_gists=1.0).lod[:10].all()


def test_positions_are_absolute_where_they_fit() -> None:
    _, start, stop, _ = Pattern(lod=np.array([1, 0])).slots()
    assert slot_positions(start, stop, 64, absolute=True).tolist()[:3] == [15, 32, 33]
    assert slot_positions(start, stop, 63, absolute=True, stride=6).tolist()[:3] == [0, 6, 7]
    assert slot_positions(start, stop, 64, absolute=False).tolist()[:3] == [0, 1, 2]
