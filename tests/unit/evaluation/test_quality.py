from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from megacontext.core import FocusScores
from megacontext.engine.policies import FocusView, Random
from megacontext.errors import DatasetError
from megacontext.evaluation import arms
from megacontext.evaluation.bootstrap import group_weights, interval, weighted_mean
from megacontext.evaluation.items import Items, draw_items
from megacontext.evaluation.quality import Figures, Measured, measure, report, swapped_gists
from megacontext.evaluation.tables import quality_markdown
from megacontext.models import BaseLM, GistNet
from megacontext.testing.tiny_bundle import tiny_gistnet
from megacontext.testing.tiny_models import tiny_base
from megacontext.training.config import BaseShape
from megacontext.training.induction import build_base

FAR, TAIL, H = 128, 32, 32


@pytest.fixture(scope="module")
def base() -> BaseLM:
    return tiny_base("llama")


@pytest.fixture(scope="module")
def gistnet(base: BaseLM) -> GistNet:
    torch.manual_seed(0)
    return tiny_gistnet(base)


def items_of(count: int = 4, vocab: int = 250) -> Items:
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, vocab, 400) for _ in range(3)]
    return draw_items(histories, far=FAR, tail=TAIL, horizon=H, count=count, seed=1)


def plain_nll(base: BaseLM, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        tokens = torch.from_numpy(ids)[None]
        logits = base.model(input_ids=tokens[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[0], tokens[0, 1:], reduction="none").double().numpy()


def test_full_and_drop_score_exactly_the_horizon(base: BaseLM) -> None:
    """Catches gist positions scored as targets, and a horizon that is off by one."""
    items = items_of()
    found = measure(base, None, items, {"full": arms.full, "drop": arms.recency(0), "near": arms.recency(40)})
    for row, ids in enumerate(items.ids):
        np.testing.assert_allclose(found.nll["full"][row], plain_nll(base, ids)[-H:], atol=1e-4)
        np.testing.assert_allclose(found.nll["drop"][row], plain_nll(base, ids[FAR:])[-H:], atol=1e-4)
        np.testing.assert_allclose(found.nll["near"][row], plain_nll(base, ids[FAR - 40 :])[-H:], atol=1e-4)
    assert found.slots == {"full": FAR, "drop": 0, "near": 40}


def test_gist_arms_have_their_slots_and_controls_differ(base: BaseLM, gistnet: GistNet) -> None:
    items = items_of()
    chosen = {
        "gist": arms.gist,
        "swapped": arms.with_gists(swapped_gists(items, base, gistnet)),
        "noise": arms.with_gists(arms.noise),
        "random_expand": arms.focused(Random(0), slots=66, renewal=16),
    }
    found = measure(base, gistnet, items, chosen)
    assert found.slots["gist"] == found.slots["swapped"] == FAR // 32
    assert found.slots["random_expand"] <= 66
    assert np.abs(found.nll["gist"] - found.nll["swapped"]).max() > 1e-4
    assert np.abs(found.nll["gist"] - found.nll["noise"]).max() > 1e-4


def test_an_arm_that_scores_another_horizon_is_refused() -> None:
    items = items_of()
    with pytest.raises(ValueError, match="exactly the horizon"):
        Measured(items=items, nll={"x": np.zeros((len(items), H + 1))}, slots={"x": 0})


def test_the_gate_does_not_judge_a_base_that_ignores_far_context() -> None:
    items = items_of()
    same = np.ones((len(items), H))
    measured = Measured(items=items, nll={"full": same, "drop": same}, slots={"full": 1, "drop": 0})
    assert not Figures(measured).gate()["judged"]
    better = Measured(items=items, nll={"full": same - 0.5, "drop": same}, slots={"full": 1, "drop": 0})
    assert Figures(better).gate()["judged"]


def test_recovered_is_zero_for_drop_and_one_for_full() -> None:
    items = items_of()
    rng = np.random.default_rng(0)
    full = rng.random((len(items), H))
    nll = {"full": full, "drop": full + 0.5, "half": full + 0.25}
    found = report(Measured(items=items, nll=nll, slots=dict.fromkeys(nll, 0.0)), pairs=[("half", "drop")])
    assert [round(found["arms"][name]["recovered"], 6) for name in ("drop", "full", "half")] == [0, 1, 0.5]
    assert found["differences"]["half-drop"]["diff"] == pytest.approx(-0.25)
    assert "paired difference" in quality_markdown(found)


def test_intervals_resample_groups_not_tokens() -> None:
    group = np.repeat([0, 1], 50)
    values = np.repeat([0.0, 1.0], 50)[:, None] * np.ones((1, 10))
    low, high = interval(weighted_mean(values, np.ones(values.shape, bool), group_weights(group, 0)))
    assert low == 0 and high == 1
    assert group_weights(group, 0).sum(axis=1).tolist() == [100.0] * 2000


def test_items_are_reproducible_and_inside_one_history() -> None:
    one, two = items_of(), items_of()
    np.testing.assert_array_equal(one.ids, two.ids)
    with pytest.raises(DatasetError, match="no history holds"):
        draw_items([np.zeros(10, np.int64)], far=FAR, tail=TAIL, horizon=H, count=2, seed=0)


class _Planted:
    """Scores block 1 by ``sign``, all others against it."""

    name = "planted"

    def __init__(self, sign: float) -> None:
        self._sign = sign

    def score(self, view: FocusView) -> FocusScores:
        hit = view.window.first_blocks == 1
        return FocusScores(np.where(hit, self._sign, -self._sign).astype(np.float32))


def test_a_policy_that_scores_the_needed_block_higher_lowers_the_nll() -> None:
    """A flipped sign anywhere between policy and window would show here."""
    model = build_base(BaseShape(width=192, layers=2, context_length=512), vocab_size=512, eos=0)
    base = BaseLM.wrap(model)
    torch.manual_seed(0)
    gistnet = tiny_gistnet(base)
    rng = np.random.default_rng(0)
    ids = rng.permutation(512)[: FAR + TAIL + H]
    # The horizon repeats block 1, and the tail's end leads into it.
    ids[-H - 4 : -4] = ids[32:64]
    items = replace(items_of(1), ids=ids[None])
    right, wrong = (arms.focused(_Planted(sign), slots=3 + 32, renewal=32) for sign in (1.0, -1.0))
    found = measure(base, gistnet, items, {"right": right, "wrong": wrong})
    assert found.nll["right"].mean() < found.nll["wrong"].mean() - 0.3
