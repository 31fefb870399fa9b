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
from megacontext.engine.substitution import Pattern, draw_pattern, encode_pattern, slot_positions, token_logits, token_nll
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


@given(st.sampled_from([1, 4, 8, 16, 32]), st.lists(st.integers(0, 1), min_size=1, max_size=12), st.sampled_from([1, 2]))
def test_slots_of_shorter_spans_tile_the_window_too(span: int, lods: list[int], vectors: int) -> None:
    pattern = Pattern(lod=np.array(lods), span=span)
    index, start, stop, token = pattern.slots(vectors)
    raw = token >= 0
    assert pattern.tokens == span * len(lods) and (token[raw] == start[raw]).all() and (stop > start).all()
    covered = np.concatenate([np.arange(a, b) for a, b in zip(start, stop, strict=True)])
    counts = np.bincount(covered, minlength=pattern.tokens)
    gisted = np.repeat(np.array(lods) == 1, span)
    assert (counts == np.where(gisted, vectors, 1)).all()
    assert sorted(index[~raw].tolist()) == list(range(pattern.tokens, pattern.tokens + vectors * sum(lods)))


@pytest.mark.parametrize("span", [4, 8, 16])
def test_a_shorter_span_is_encoded_as_a_block_with_fewer_live_children(base: BaseLM, gistnet: GistNet, span: int) -> None:
    ids, pattern = tokens(2), Pattern(lod=np.tile([0, 1], 32 // span), span=span)
    with torch.no_grad():
        pool = encode_pattern(pattern, base.embed(ids), gistnet)
        for number, at in enumerate(pattern.encoded):
            block = torch.full((2, 32), 7)  # whatever is masked has no influence
            block[:, :span] = ids[:, at * span : (at + 1) * span]
            live = (torch.arange(32) < span).expand(2, -1)
            alone = gistnet.encode(base.embed(block), live, torch.ones(2, dtype=torch.int64))
            torch.testing.assert_close(pool[:, pattern.tokens + number], alone[:, 0])


def test_what_is_no_filling_alone_makes_a_gist(base: BaseLM, gistnet: GistNet) -> None:
    ids, pattern = tokens(2), Pattern(lod=np.array([1, 0]))
    live = torch.ones(2, 64, dtype=torch.bool)
    live[0, 20:32] = False
    with torch.no_grad():
        whole = encode_pattern(pattern, base.embed(ids), gistnet)
        filled = encode_pattern(pattern, base.embed(ids), gistnet, live)
        alone = gistnet.encode(base.embed(ids[:1, :32]), live[:1, :32], torch.ones(1, dtype=torch.int64))
    torch.testing.assert_close(filled[0, -1], alone[0, 0])
    torch.testing.assert_close(filled[1, -1], whole[1, -1])
    assert not torch.allclose(filled[0, -1], whole[0, -1])


@pytest.mark.parametrize("wrong", [0, 5, 64])
def test_spans_are_divisors_of_a_block_and_lod2_is_made_of_whole_blocks(wrong: int) -> None:
    with pytest.raises(ValueError, match="divisor of 32"):
        Pattern(lod=np.zeros(4, dtype=np.int64), span=wrong)
    with pytest.raises(ValueError, match="gists of 32 tokens, not of 16"):
        Pattern(lod=np.full(32, 2), span=16)


@pytest.mark.parametrize("span", [8, 32])
def test_a_replaced_span_is_one_that_what_follows_may_not_look_at(base: BaseLM, gistnet: GistNet, span: int) -> None:
    """Masked attention: span and gist both in the window, attention to the span forbidden, gives the same logits."""
    ids = tokens(3)
    pattern = Pattern(lod=np.concatenate([[0, 1], np.zeros(96 // span - 2, dtype=np.int64)]), span=span)
    with torch.no_grad():
        pool = encode_pattern(pattern, base.embed(ids), gistnet)
        replaced, _ = token_logits(base, pool, pattern, absolute=True)
        index, start, stop, token = (part[:-1] for part in pattern.slots())
        hidden = np.arange(span, 2 * span)
        both = np.concatenate([index[:span], hidden, index[span:]])
        own = slot_positions(start, stop, 512, absolute=True)
        positions = np.concatenate([own[:span], hidden, own[span:]])
        allow = torch.ones(len(both), len(both), dtype=torch.bool)
        allow[2 * span :, span : 2 * span] = False
        masked = base.forward(pool[:, torch.from_numpy(both)], torch.from_numpy(positions).expand(2, -1), mask=allow).logits
        open_ = base.forward(pool[:, torch.from_numpy(both)], torch.from_numpy(positions).expand(2, -1)).logits
    kept = torch.from_numpy(np.concatenate([np.arange(span), np.arange(2 * span, len(both))]))
    assert token[span] == -1
    torch.testing.assert_close(masked[:, kept], replaced, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(open_[:, kept], replaced, atol=1e-2)


def test_a_window_without_any_gist_is_not_drawn() -> None:
    for seed in range(60):
        assert draw_pattern(np.random.default_rng(seed), far=1, tail=2, spans=0, all_gists=0.0).lod.tolist() == [1, 0, 0]


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
