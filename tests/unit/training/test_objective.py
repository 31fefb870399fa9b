"""Losses behind substituted windows: zero where nothing is replaced, computed only where they weigh, each with a gradient."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.engine.substitution import Pattern, token_nll
from megacontext.errors import ConfigError
from megacontext.models import BaseLM, GistNet, GistNetConfig
from megacontext.models.reconstruction import ReconstructionConfig, ReconstructionHead
from megacontext.testing.tiny_models import tiny_base
from megacontext.training.augment import paste_repeats
from megacontext.training.band import draw_bands, needs_far
from megacontext.training.batches import (
    Batch,
    banded_batch,
    draw_batch,
    far_weight,
    gist_pool,
    longest_window,
    pattern_batch,
    require_whole,
    sample_rows,
    stage_pattern,
)
from megacontext.training.config import MixConfig
from megacontext.training.curriculum import Curriculum
from megacontext.training.dataset import Blocks
from megacontext.training.loss_mix import LossMix
from megacontext.training.losses import contrastive_margin
from megacontext.training.objective import contrast, mask_some, objective, read_back, weighted_nll

MIX = MixConfig(rows=2, blocks=6, group=(1, 2), far=(2, 4), tail=2, lod2=0.0, repeats=0.0)


@pytest.fixture(scope="module")
def base() -> BaseLM:
    return tiny_base("llama", max_position_embeddings=512)


@pytest.fixture(scope="module")
def gistnet(base: BaseLM) -> Iterator[GistNet]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = GistNet(GistNetConfig(width=base.width, output_rms=base.embedding_rms, heads=2, layers=1))
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        yield net


@pytest.fixture(scope="module")
def train() -> Blocks:
    """One package of full blocks of random bytes."""
    count = 200
    ids = np.random.default_rng(0).integers(256, size=(count, 32)).astype(np.uint16)
    zeros = np.zeros(count, dtype=np.uint32)
    return Blocks(ids=ids, fill=np.full(count, 32, dtype=np.uint8), document=zeros, package=zeros)


def batch_of(base: BaseLM, gistnet: GistNet, train: Blocks, pattern: Pattern, mix: MixConfig = MIX, seed: int = 0) -> Batch:
    return pattern_batch(base, gistnet, train, np.random.default_rng(seed), mix, pattern)


def rng() -> np.random.Generator:
    return np.random.default_rng(9)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([4, 8, 16, 32]), st.integers(0, 1000), st.booleans())
def test_where_nothing_is_replaced_the_teacher_is_met(
    base: BaseLM, gistnet: GistNet, train: Blocks, span: int, seed: int, absolute: bool
) -> None:
    pattern = Pattern(lod=np.zeros(128 // span, dtype=np.int64), span=span)
    mix = MIX.model_copy(update={"absolute": float(absolute)})
    with torch.no_grad():
        batch = batch_of(base, gistnet, train, pattern, mix, seed)
        _, figures = objective(LossMix(kl=1, hidden=1), batch, gistnet, rng())
        plain = base.model(input_ids=batch.ids[:, :-1], use_cache=False).logits
    assert abs(figures["loss/kl"]) < 1e-5 and figures["loss/hidden"] < 1e-8
    own = torch.nn.functional.cross_entropy(plain.mT, batch.ids[:, 1:])
    assert figures["loss/nll"] == pytest.approx(float(own), abs=1e-4)


@pytest.mark.parametrize("kind", ["banded", "pattern"])
def test_gists_are_pulled_by_every_loss(base: BaseLM, gistnet: GistNet, train: Blocks, kind: str) -> None:
    head = head_for(base)
    for name in ("nll", "kl", "hidden", "contrastive", "reconstruction"):
        mix = MIX.model_copy(update={"banded": float(kind == "banded")})
        batch = draw_batch(base, gistnet, train, rng(), mix)
        wanted = LossMix(**{"nll": 0, name: 0.5})
        loss, figures = objective(wanted, batch, gistnet, rng(), head=head)
        assert list(figures) == [f"loss/{name}"] and figures[f"loss/{name}"] > 0
        assert float(loss.detach()) == pytest.approx(0.5 * figures[f"loss/{name}"], rel=1e-5)
        value = gistnet.get_parameter("readout.score.weight")
        (gradient,) = torch.autograd.grad(loss, value)
        assert gradient.abs().max() > 0, name


def head_for(base: BaseLM) -> ReconstructionHead:
    torch.manual_seed(1)
    head = ReconstructionHead(
        ReconstructionConfig(width=base.width, input_rms=base.embedding_rms, hidden=32, heads=2, layers=1)
    )
    return head.requires_grad_(False)


def test_what_weighs_nothing_does_not_run_the_base(base: BaseLM, gistnet: GistNet, train: Blocks) -> None:
    passes: list[int] = []
    handle = base.model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        for wanted, expected in (
            (LossMix(), 1),
            (LossMix(kl=1), 2),
            (LossMix(kl=1, hidden=1), 2),
            (LossMix(nll=0, contrastive=1), 0),
        ):
            passes.clear()
            objective(wanted, draw_batch(base, gistnet, train, rng(), MIX), gistnet, rng())
            assert len(passes) == expected, wanted
    finally:
        handle.remove()


def test_without_a_head_nothing_is_read_back(base: BaseLM, gistnet: GistNet, train: Blocks) -> None:
    with pytest.raises(ConfigError, match="reconstruction: cannot be computed"):
        objective(LossMix(reconstruction=1), draw_batch(base, gistnet, train, rng(), MIX), gistnet, rng())


def test_the_head_reads_the_tokens_of_the_gist_s_own_span(base: BaseLM, gistnet: GistNet, train: Blocks) -> None:
    head, mix = head_for(base), LossMix(nll=0, reconstruction=1, nodes=100)
    batch = batch_of(base, gistnet, train, Pattern(lod=np.array([0, 1, 0, 1, 0, 0])))
    found = read_back(mix, batch, head, rng())
    gists = batch.gists.flatten(0, 1)
    ids = batch.ids.view(2, 6, 32)[:, [1, 3]].flatten(0, 1)
    table = base.embed(torch.arange(base.vocab_size)[None])[0]
    places = np.sort(rng_after_choice(2).permutation(32)[:16])
    logits = (head(gists) @ table.T)[:, torch.from_numpy(places)]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, torch.from_numpy(places)].flatten())
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def rng_after_choice(count: int) -> np.random.Generator:
    made = rng()
    made.permutation(count)
    return made


@pytest.mark.parametrize("span", [8, 32])
def test_contrast_is_the_margin_over_own_masked_and_neighbouring_spans(
    base: BaseLM, gistnet: GistNet, train: Blocks, span: int
) -> None:
    pattern = Pattern(lod=np.concatenate([[1, 0, 1], np.zeros(192 // span - 3, dtype=np.int64)]), span=span)
    batch, mix = batch_of(base, gistnet, train, pattern), LossMix(nll=0, contrastive=1, margin=0.5, masked=0.3)
    with torch.no_grad():
        found = contrast(mix, batch, gistnet, rng())
        _, gists = gist_pool(Pattern(lod=np.ones(192 // span, dtype=np.int64), span=span), batch.embeds, gistnet)
        every = gists[:, :, 0]
        live = (torch.arange(32) < span).expand(2, 2, 32)
        kept = mask_some(live, 0.3, rng_after_choice(2)).flatten(0, 1)
        children = torch.nn.functional.pad(batch.embeds.view(2, -1, span, 32)[:, [0, 2]], (0, 0, 0, 32 - span))
        positives = gistnet.encode(children.flatten(0, 1), kept, torch.ones(4, dtype=torch.int64))[:, 0]
        neighbours = torch.stack([every[:, [1, 1]], every[:, [1, 3]]], dim=2).flatten(0, 1)
        expected = contrastive_margin(every[:, [0, 2]].flatten(0, 1), positives, margin=0.5, neighbours=neighbours)
    assert float(found) == pytest.approx(float(expected), abs=1e-5) and float(found) > 0


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99), st.lists(st.integers(0, 32), min_size=1, max_size=5))
def test_masking_hides_live_children_alone_and_never_all_of_them(seed: int, share: float, fills: list[int]) -> None:
    live = torch.arange(32)[None, None] < torch.tensor(fills)[None, :, None]
    kept = mask_some(live, share, np.random.default_rng(seed))
    assert not (kept & ~live).any()
    assert kept.any(-1).tolist() == live.any(-1).tolist()


def test_masking_hides_the_share_that_was_asked_for() -> None:
    kept = mask_some(torch.ones(20, 20, 32, dtype=torch.bool), 0.15, rng())
    assert float((~kept).float().mean()) == pytest.approx(0.15, abs=0.01)


def test_the_nll_is_that_of_the_pattern_and_weighs_what_is_far_alone(base: BaseLM, gistnet: GistNet, train: Blocks) -> None:
    pattern, mix = Pattern(lod=np.array([1, 0, 1, 1, 0, 0])), MIX.model_copy(update={"absolute": 0.0})
    with torch.no_grad():
        batch = batch_of(base, gistnet, train, pattern, mix)
        pool, _ = gist_pool(pattern, batch.embeds, gistnet)
        nll = token_nll(base, pool, batch.ids, pattern, absolute=False)
        assert float(weighted_nll(batch.read().logits, batch)) == pytest.approx(float(nll.mean()), abs=1e-6)
        heavy = batch_of(base, gistnet, train, pattern, mix.model_copy(update={"far_weight": 3.0}))
        weight = heavy.weight
        assert weight is not None and set(weight.unique().tolist()) == {1.0, 4.0}
        expected = (nll * weight).sum() / weight.sum()
        assert float(weighted_nll(heavy.read().logits, heavy)) == pytest.approx(float(expected), abs=1e-6)


def test_a_far_token_stands_in_a_gist_before_and_in_nothing_raw() -> None:
    ids = torch.arange(128)[None].repeat(1, 1)
    ids[0, 100] = 5  # behind the first gist
    ids[0, 101] = 40  # raw already
    ids[0, 102] = 70  # in the second gist
    ids[0, 33] = 70  # but that comes later
    ids[0, 103] = 103
    pattern = Pattern(lod=np.array([1, 0, 1, 0]))
    scored = torch.arange(32, 128)
    scored = scored[(scored < 64) | (scored >= 96)]
    weight = far_weight(MixConfig(far_weight=1.0), ids, pattern, scored)
    assert weight is not None
    # 102 is raw at 33 as well, so that only 100 is left.
    assert scored[weight[0] > 1].tolist() == [100]
    ids[0, 33] = 33
    again = far_weight(MixConfig(far_weight=1.0), ids, pattern, scored)
    assert again is not None and scored[again[0] > 1].tolist() == [100, 102]
    assert far_weight(MixConfig(), ids, pattern, scored) is None


def test_banded_rows_weigh_as_bands_say(base: BaseLM, gistnet: GistNet, train: Blocks) -> None:
    batch = banded_batch(base, gistnet, train, rng(), MIX.model_copy(update={"far_weight": 2.0}))
    again = rng()
    rows = [paste_repeats(row, again, probability=0.0) for row in sample_rows(train, again, rows=2, blocks=6)]
    assert batch.ids.tolist() == np.stack(rows).tolist()
    expected = 1.0 + 2.0 * needs_far(batch.ids, draw_bands(again, blocks=6, group=(1, 2)))
    assert batch.weight is not None and batch.weight.shape == batch.targets.shape == (2, 6 * 32 - 1)
    assert torch.equal(batch.weight, expected) and set(expected.unique().tolist()) == {1.0, 3.0}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 39), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_a_window_is_what_its_stage_says(step: int, seed: int, tail: int) -> None:
    course = Curriculum(far=(1, 8), gists=(1, 12))
    stage = course.at(step, 40)
    pattern = stage_pattern(stage, np.random.default_rng(seed), tail=tail)
    far = pattern.lod[: stage.spans]
    assert pattern.span == stage.span and pattern.tokens == (stage.far + tail) * 32
    assert far.sum() == stage.gisted <= stage.gists
    assert not pattern.lod[stage.spans :].any() and len(pattern.lod) == stage.spans + tail * 32 // stage.span


def test_level_two_enters_with_its_stage(base: BaseLM, gistnet: GistNet, train: Blocks) -> None:
    course = Curriculum(spans=(32,), levels=2, far=(2, 2), gists=(2, 2), raw=(0.0, 0.0), easy=0.0)
    mix = MIX.model_copy(update={"lod2": 1.0, "most_spans": 1})
    early, late = (draw_batch(base, gistnet, train, rng(), mix, course.at(step, 10)) for step in (0, 9))
    assert early.ids.shape[1] == 4 * 32 and late.ids.shape[1] == 36 * 32
    assert len(late.gisted) == 34 and early.gisted.tolist() == [0, 1]


def test_the_shortest_far_context_still_takes_repeats(base: BaseLM, gistnet: GistNet, train: Blocks) -> None:
    mix = MIX.model_copy(update={"repeats": 1.0, "tail": 4})
    batch = batch_of(base, gistnet, train, Pattern(lod=np.array([1, 0, 0, 0, 0])), mix)
    assert batch.ids.shape == (2, 160)


def test_a_teacher_must_be_able_to_read_the_longest_window(base: BaseLM) -> None:
    assert longest_window(MIX, 4, level=2) == 6 * 32
    assert longest_window(MIX.model_copy(update={"lod2": 0.1}), 4, level=1) == 6 * 32
    assert longest_window(MIX.model_copy(update={"lod2": 0.1, "most_spans": 2}), 4, level=2) == 70 * 32
    assert longest_window(MIX.model_copy(update={"banded": 1.0, "blocks": 3}), 4, level=2) == 96
    require_whole(base, 513)
    with pytest.raises(ConfigError, match="up to 514 tokens here, but it was made for 512"):
        require_whole(base, 514)


def test_a_frozen_gistnet_is_not_differentiated_but_the_raw_embeddings_are(train: Blocks) -> None:
    trained = tiny_base("llama")
    trained.model.requires_grad_(True)
    net = GistNet(GistNetConfig(width=trained.width, output_rms=trained.embedding_rms, heads=2, layers=1)).requires_grad_(False)
    for mix in (MIX, MIX.model_copy(update={"banded": 1.0})):
        batch = draw_batch(trained, net, train, rng(), mix)
        assert not batch.gists.requires_grad
        loss, _ = objective(LossMix(kl=1), batch, net, rng())
        (gradient,) = torch.autograd.grad(loss, trained.model.get_input_embeddings().weight)
        assert gradient.abs().max() > 0
