"""Windows from slices: what is shown is what the cached teacher read, and filling is nowhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slice_files import small_slices

from megacontext.engine.substitution import Pattern
from megacontext.errors import ConfigError, ModelMismatch
from megacontext.models import BaseLM, GistNet, GistNetConfig
from megacontext.testing.tiny_models import tiny_base
from megacontext.training.config import MixConfig, TeacherConfig
from megacontext.training.curriculum import Stage
from megacontext.training.loss_mix import LossMix
from megacontext.training.objective import contrast, objective
from megacontext.training.replay import Replay, packed_slots
from megacontext.training.slices import load_slices

MIX = MixConfig(rows=3, tail=1, all_gists=1.0, far_weight=1.0)


@pytest.fixture(scope="module")
def base() -> BaseLM:
    return tiny_base("llama")


@pytest.fixture(scope="module")
def gistnet(base: BaseLM) -> Iterator[GistNet]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = GistNet(GistNetConfig(width=base.width, output_rms=base.embedding_rms, heads=2, layers=1))
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        yield net


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    folder = tmp_path_factory.mktemp("slices")
    small_slices(folder)
    return TeacherConfig(slices=folder / "data", cache=folder / "teacher", top=258)


@pytest.fixture(scope="module")
def replay(config: TeacherConfig, base: BaseLM) -> Replay:
    return Replay(config, base, tail=1)


def stage(**changes: object) -> Stage:
    values: dict[str, object] = {"span": 32, "far": 99, "raw": 0.0, "gists": 99, "level": 1, **changes}
    return Stage(**values)  # type: ignore[arg-type]


def test_with_nothing_replaced_the_cached_teacher_is_met_whatever_is_filling(
    replay: Replay, gistnet: GistNet, config: TeacherConfig
) -> None:
    every = np.arange(len(load_slices(config.slices, "train")))
    assert (load_slices(config.slices, "train").fill < 32).any()
    raw = Pattern(lod=np.zeros(4 + 1, dtype=np.int64))
    gists = Pattern(lod=np.array([1, 1, 1, 0, 0]))
    with torch.no_grad():
        _, met = objective(LossMix(kl=1), replay._batch(gistnet, every, MIX, raw), gistnet, np.random.default_rng(0))
        _, missed = objective(LossMix(kl=1), replay._batch(gistnet, every, MIX, gists), gistnet, np.random.default_rng(0))
    assert abs(met["loss/kl"]) < 1e-3 < 0.02 < missed["loss/kl"]


@pytest.mark.parametrize("span", [8, 32])
def test_a_drawn_window_has_the_stage_s_spans_over_the_whole_far_context(replay: Replay, gistnet: GistNet, span: int) -> None:
    batch = replay.draw(gistnet, np.random.default_rng(3), MIX, stage(span=span, raw=0.5))
    assert batch.span == span and len(batch.gisted) == round(0.5 * 3 * 32 / span)
    assert batch.ids.shape == (3, 5 * 32) and batch.targets.shape == (3, 10)
    assert batch.weight is not None and batch.weight.shape == (3, 10)
    loss, figures = objective(LossMix(kl=1, contrastive=1), batch, gistnet, np.random.default_rng(0))
    (gradient,) = torch.autograd.grad(loss, gistnet.get_parameter("readout.score.weight"))
    assert gradient.any() and min(figures.values()) > 0
    assert float(contrast(LossMix(), batch, gistnet, np.random.default_rng(1)).detach()) >= 0


def test_the_teacher_belongs_to_the_drawn_slices(replay: Replay, gistnet: GistNet, base: BaseLM) -> None:
    """What was drawn, read again by transformers itself without its filling, is what the teacher said."""
    batch = replay.draw(gistnet, np.random.default_rng(5), MIX)
    assert batch.live is not None and batch.teacher is not None
    for row in range(3):
        ids = batch.ids[row][batch.live[row]]
        with torch.no_grad():
            own = base.model(input_ids=ids[None, :-1], use_cache=False).logits[0, -10:].log_softmax(-1)
        best = batch.teacher.log_probs[row].float()
        assert torch.allclose(own.gather(-1, batch.teacher.indices[row]), best, atol=2e-2)
        assert batch.targets[row].tolist() == ids[-10:].tolist()


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([8, 32]), st.sampled_from([1, 2]), st.sampled_from([1, 6]))
def test_packing_keeps_the_shown_slots_in_order_at_their_ranks(
    data: st.DataObject, span: int, vectors: int, stride: int
) -> None:
    lod = data.draw(st.lists(st.integers(0, 1), min_size=2, max_size=6))
    fills = data.draw(st.lists(st.lists(st.integers(0, span), min_size=len(lod), max_size=len(lod)), min_size=1, max_size=3))
    live = (torch.arange(span) < torch.tensor(fills)[..., None]).flatten(1)
    pattern = Pattern(lod=np.array(lod), span=span)
    index, positions, valid = packed_slots(pattern, live, 4096, vectors=vectors, stride=stride)
    for row, fill in enumerate(fills):
        expected, places, at, gists = [], [], 0, 0
        for number, (level, held) in enumerate(zip(lod, fill, strict=True)):
            if level:
                for vector in range(vectors if held else 0):
                    expected.append(pattern.tokens + gists * vectors + vector)
                    places.append(at)
                    at += stride
                gists += 1
            else:
                expected += [number * span + token for token in range(held)]
                places += range(at, at + held)
                at += held
        count = len(expected)
        assert valid[row].tolist() == [False] * (valid.shape[1] - count) + [True] * count
        assert index[row][valid[row]].tolist() == expected
        assert positions[row][valid[row]].tolist() == places


def test_foreign_caches_and_slices_without_far_context_are_refused(config: TeacherConfig, base: BaseLM) -> None:
    with pytest.raises(ConfigError, match="leave no far context before a tail of 4"):
        Replay(config, base, tail=4)
    Replay(config, base, tail=1)
    with pytest.raises(ModelMismatch, match="another base"):
        Replay(config, tiny_base(seed=1), tail=1)
