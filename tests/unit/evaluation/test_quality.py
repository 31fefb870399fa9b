"""Arms, figures and intervals on tiny models whose numbers are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from megacontext.core import FocusScores
from megacontext.engine.bundle import Bundle
from megacontext.engine.policies import FocusView, Random
from megacontext.errors import ConfigError, DatasetError
from megacontext.evaluation import arms
from megacontext.evaluation.bootstrap import group_weights, interval, weighted_mean
from megacontext.evaluation.choices import best, longest_suffix
from megacontext.evaluation.gists import mean_gists, rarest_places
from megacontext.evaluation.items import Items, draw_items
from megacontext.evaluation.oracle import Gains
from megacontext.evaluation.quality import (
    Figures,
    Measured,
    budget_arms,
    far_for,
    gist_arms,
    measure,
    report,
    swapped_gists,
    unneeded_arms,
)
from megacontext.evaluation.scoring import Scorer
from megacontext.models import BaseLM, GistNet
from megacontext.testing.tiny_bundle import tiny_gistnet, tiny_lensnet
from megacontext.testing.tiny_models import tiny_base
from megacontext.training.config import BaseShape
from megacontext.training.induction import build_base

FAR, TAIL, H = 256, 32, 32


@pytest.fixture(scope="module")
def base() -> BaseLM:
    return tiny_base("llama")


def gistnet_with(base: BaseLM, vectors: int) -> GistNet:
    torch.manual_seed(0)
    net = GistNet(replace(tiny_gistnet(base).config, vectors=vectors))
    with torch.no_grad():
        for weight in net.parameters():  # a fresh one gives the mean
            weight.add_(0.1 * torch.randn_like(weight))
    return net.eval()


@pytest.fixture(scope="module")
def gistnet(base: BaseLM) -> GistNet:
    return gistnet_with(base, 1)


def items_of(count: int = 4, vocab: int = 250) -> Items:
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, vocab, 600) for _ in range(3)]
    return draw_items(histories, far=FAR, tail=TAIL, horizon=H, count=count, seed=1)


def plain_nll(base: BaseLM, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        tokens = torch.from_numpy(ids)[None]
        logits = base.model(input_ids=tokens[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[0], tokens[0, 1:], reduction="none").double().numpy()


def test_full_and_drop_are_what_the_base_itself_says(base: BaseLM) -> None:
    items = items_of()
    found = measure(base, None, items, {"full": arms.full, "drop": arms.recency(0), "near": arms.recency(40)})
    for row, ids in enumerate(items.ids):
        np.testing.assert_allclose(found.nll["full"][row], plain_nll(base, ids)[-H:], atol=1e-4)
        np.testing.assert_allclose(found.nll["drop"][row], plain_nll(base, ids[FAR:])[-H:], atol=1e-4)
        np.testing.assert_allclose(found.nll["near"][row], plain_nll(base, ids[FAR - 40 :])[-H:], atol=1e-4)
    assert found.slots == {"full": FAR, "drop": 0, "near": 40}
    assert found.forwards == {"full": (FAR + TAIL + H) / H, "drop": (TAIL + H) / H, "near": (40 + TAIL + H) / H}


@pytest.mark.parametrize("vectors", [1, 2, 4])
def test_every_arm_has_exactly_its_slots(base: BaseLM, vectors: int) -> None:
    gistnet = gistnet_with(base, vectors)
    torch.manual_seed(0)
    bundle = Bundle(name="tiny", base=base, gists=gistnet, lens=tiny_lensnet(base, gistnet))
    items = items_of()
    slots = FAR // 32 * vectors
    found = measure(base, gistnet, items, gist_arms(bundle, items))
    assert found.slots == {"full": FAR, "drop": 0} | dict.fromkeys(found.slots.keys() - {"full", "drop"}, slots)
    for control in ("mean", "rarest", "noise", "swapped"):
        assert np.abs(found.nll["gist"] - found.nll[control]).max() > 1e-4
    budget = FAR // 4
    gains = Gains(Scorer(base=base))
    chosen = budget_arms(bundle, items, slots=budget, renewal=8, gains=gains)
    found = measure(base, gistnet, items, chosen)
    assert found.slots.keys() == {
        *("recency", "recency_sinks", "suffix", "bm25", "random_expand", "recent_expand", "cosine", "megacontext", "oracle")
    }
    assert all(found.slots[name] == budget for name in ("recency", "recency_sinks", "suffix", "bm25"))
    expanded = ("random_expand", "recent_expand", "cosine", "megacontext", "oracle")
    assert all(slots <= found.slots[name] <= budget for name in expanded)
    assert found.slots["random_expand"] > slots


def test_a_budget_below_the_gists_has_no_arms_with_gists(base: BaseLM) -> None:
    bundle = Bundle(name="tiny", base=base, gists=gistnet_with(base, 4))
    assert set(budget_arms(bundle, items_of(), slots=31, renewal=8)) == {"recency", "recency_sinks", "suffix", "bm25"}


def test_where_no_block_more_fits_only_the_gists_are_compared(base: BaseLM, gistnet: GistNet) -> None:
    bundle = Bundle(name="tiny", base=base, gists=gistnet, lens=tiny_lensnet(base, gistnet))
    gains, items = Gains(Scorer(base=base, encoder=gistnet)), items_of()
    assert arms.openings(8, 38, 1) == 0 and arms.openings(8, 39, 1) == 1
    chosen = budget_arms(bundle, items, slots=38, renewal=8, gains=gains)
    assert set(chosen) == {*("recency", "recency_sinks", "suffix", "bm25", "megacontext")}
    assert "oracle" in budget_arms(bundle, items, slots=39, renewal=8, gains=gains)


def test_random_expansion_differs_between_items(base: BaseLM, gistnet: GistNet) -> None:
    items = items_of()
    items = replace(items, ids=np.repeat(items.ids[:1], 6, axis=0), group=np.arange(6), history=None)
    found = measure(base, gistnet, items, {"random": arms.focused(Random(0), slots=40, renewal=32)})
    assert len(np.unique(found.nll["random"].round(6), axis=0)) > 2


def test_unneeded_gists_stand_in_front_of_all_raw_tokens(base: BaseLM, gistnet: GistNet) -> None:
    items = items_of()
    bundle = Bundle(name="tiny", base=base, gists=gistnet)
    found = measure(base, gistnet, items, unneeded_arms(bundle, items) | {"full": arms.full})
    np.testing.assert_allclose(found.nll["alone"], found.nll["full"], atol=1e-6)
    assert found.slots["behind_unrelated"] == FAR + FAR // 32
    assert np.abs(found.nll["behind_unrelated"] - found.nll["alone"]).max() > 1e-4


def test_the_rarest_tokens_of_a_block_in_its_own_order() -> None:
    blocks = np.array([[5, 5, 1, 7, 1, 1, 2, 7] * 4])
    counts = np.array([9, 9, 3, 9, 9, 4, 9, 3])
    assert rarest_places(blocks, counts, 1).tolist() == [[31]]  # token 7: as rare as 2, and the higher id
    many = rarest_places(np.array([[4, 6, 2, 5] + [0] * 28]), np.array([99, 0, 1, 0, 5, 3, 7]), 3)
    assert many.tolist() == [[0, 2, 3]]


def test_means_of_parts_are_means_of_these_tokens(base: BaseLM) -> None:
    blocks = np.arange(64).reshape(2, 32)
    with torch.no_grad():
        embedded = base.embed(torch.from_numpy(blocks)).numpy()
    found = mean_gists(blocks, base, gistnet_with(base, 2)).astype(np.float64)
    for part in (0, 1):
        wanted = embedded[:, part * 16 : part * 16 + 16].mean(axis=1)
        cosine = (found[:, part] * wanted).sum(-1) / np.linalg.norm(found[:, part], axis=-1) / np.linalg.norm(wanted, axis=-1)
        np.testing.assert_allclose(cosine, 1, atol=1e-3)


def test_the_far_context_follows_what_the_base_can_read(base: BaseLM) -> None:
    assert far_for(base, tail=128, horizon=64) == 512 - 192
    assert far_for(tiny_base("llama", max_position_embeddings=1152), tail=128, horizon=64) == 896
    assert far_for(tiny_base("llama", max_position_embeddings=8192), tail=128, horizon=64) == 3968


def test_gists_that_do_not_fit_are_an_error_that_says_what_to_do(base: BaseLM) -> None:
    rng = np.random.default_rng(0)
    items = draw_items([rng.integers(0, 250, 20_000)], far=16_384, tail=32, horizon=32, count=2, seed=0)
    with pytest.raises(ConfigError, match="shorter --far"):
        gist_arms(Bundle(name="tiny", base=base, gists=gistnet_with(base, 1)), items)


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
    assert not Figures(Measured(items=items, nll={"drop": same}, slots={"drop": 0})).gate()["judged"]


def known() -> Measured:
    """Far context is worth 0.5 nats everywhere; gists carry half of it, swapped ones a tenth."""
    items = items_of(24)
    full = np.random.default_rng(0).random(items.scored.shape)
    nll = {"full": full, "drop": full + 0.5, "gist": full + 0.25, "swapped": full + 0.45, "oracle": full - 0.25}
    nll["megacontext"] = full
    nll["oracle"][::2] = np.nan
    return Measured(items=items, nll=nll, slots=dict.fromkeys(nll, 0.0))


def test_figures_of_known_arms() -> None:
    found = report(known(), pairs=[("gist", "drop"), ("oracle", "megacontext")])
    recovered = {name: round(arm["recovered"], 6) for name, arm in found["arms"].items()}
    assert recovered == {"full": 1, "drop": 0, "gist": 0.5, "swapped": 0.1, "oracle": 1.5, "megacontext": 1}
    assert found["differences"]["gist-drop"]["diff"] == pytest.approx(-0.25)
    assert found["differences"]["oracle-megacontext"]["diff"] == pytest.approx(-0.25)
    assert found["arms"]["oracle"]["items"] == 12 and "items" not in found["arms"]["gist"]
    assert found["real"]["recovered"] == pytest.approx(0.4)
    assert found["real"]["recovered_ci"] == pytest.approx((0.4, 0.4))
    assert found["arms"]["gist"]["delta_nll"] == pytest.approx(0.25)
    assert found["arms"]["gist"]["delta_nll_share"] == pytest.approx(0.25 / known().nll["full"].mean())
    share = Figures(known()).share_of_oracle("gist", "megacontext", "oracle")
    assert share["share_of_oracle"] == pytest.approx(0.5) and share["share_of_oracle_ci"] == pytest.approx((0.5, 0.5))


def test_a_share_of_nothing_is_absent() -> None:
    measured = known()
    measured = replace(measured, nll={**measured.nll, "oracle": measured.nll["gist"]})
    assert Figures(measured).share_of_oracle("gist", "megacontext", "oracle") == {}


def test_distances_are_counted_from_the_windows_edge() -> None:
    items = items_of()
    full = np.zeros(items.scored.shape)
    late = np.where(np.arange(H) < 4, 1.0, np.where(np.arange(H) < 16, 2.0, 3.0)) * np.ones_like(full)
    measured = Measured(items=items, nll={"full": full, "drop": late}, slots={"full": 0, "drop": 0})
    found = Figures(measured).by_distance(["drop"])
    assert {name: part["drop"]["delta_nll"] for name, part in found.items()} == {"1-4": 1, "5-16": 2, "17-32": 3}


def test_intervals_resample_groups_not_tokens() -> None:
    group = np.repeat([0, 1], 50)
    values = np.repeat([0.0, 1.0], 50)[:, None] * np.ones((1, 10))
    low, high = interval(weighted_mean(values, np.ones(values.shape, bool), group_weights(group, 0)))
    assert low == 0 and high == 1
    assert group_weights(group, 0).sum(axis=1).tolist() == [100.0] * 2000


def test_items_are_reproducible_and_inside_one_history() -> None:
    one, two = items_of(), items_of()
    np.testing.assert_array_equal(one.ids, two.ids)
    assert one.digest == two.digest != items_of(5).digest
    with pytest.raises(DatasetError, match="no history holds"):
        draw_items([np.zeros(10, np.int64)], far=FAR, tail=TAIL, horizon=H, count=2, seed=0)


def test_a_group_is_the_document_of_the_first_scored_token() -> None:
    document = np.r_[np.full(599, 1), 0]
    history = np.concatenate([document * each for each in (1, 2, 3)])  # three documents, closed by 0
    items = draw_items([history[:700], history], far=64, tail=32, horizon=32, count=60, seed=0, closed_by=0, align=32)
    first = items.scored[:, 0]
    for row in np.flatnonzero(first > 0):
        same = items.group == items.group[row]
        assert set(first[same & (first > 0)].tolist()) == {first[row]}
        assert set(items.histories[same].tolist()) == {items.histories[row]}
    assert len(set(items.group.tolist())) == 5


def test_far_copy_tokens_are_in_the_far_context_and_not_in_the_tail() -> None:
    ids = np.concatenate([np.full(32, 1), np.full(32, 2), [1, 2, 3]])[None]
    items = Items(ids=ids, group=np.zeros(1, np.int64), far=32, tail=32, horizon=3)
    assert items.far_copy.tolist() == [[True, False, False]]


def test_gists_are_swapped_with_another_history(base: BaseLM, gistnet: GistNet) -> None:
    items = items_of(6)
    change = swapped_gists(items, base, gistnet)
    for row, ids in enumerate(items.ids):
        reader = arms.make_reader(ids, gistnet, base)
        other = items.other(row)
        assert items.histories[other] != items.histories[row]
        item = arms.Item(ids=ids, far=FAR, tail=TAIL, reader=reader, row=row)
        wanted = arms.make_reader(items.ids[other], gistnet, base).gists[1]
        np.testing.assert_array_equal(change(item), wanted)


class _Planted:
    """Scores block 1 by ``sign``, all others against it."""

    name = "planted"

    def __init__(self, sign: float) -> None:
        self._sign = sign

    def score(self, view: FocusView) -> FocusScores:
        hit = view.window.first_blocks == 1
        return FocusScores(np.where(hit, self._sign, -self._sign).astype(np.float32))


def test_who_opens_the_needed_block_predicts_better() -> None:
    """A flipped sign anywhere between policy and window would show here; oracle and suffix must find the block."""
    model = build_base(BaseShape(width=192, layers=2, head_dim=32, context_length=512), vocab_size=512, eos=0)
    base = BaseLM.wrap(model)
    torch.manual_seed(0)
    gistnet = tiny_gistnet(base)
    rng = np.random.default_rng(0)
    ids = rng.permutation(512)[: FAR + TAIL + H]
    # The horizon repeats block 1, and the tail's end leads into it.
    ids[-H - 4 : -4] = ids[32:64]
    items = replace(items_of(1), ids=ids[None])
    gains = Gains(Scorer(base=base))
    slots = FAR // 32 - 1 + 32
    chosen = {
        "right": arms.focused(_Planted(1.0), slots=slots, renewal=32),
        "wrong": arms.focused(_Planted(-1.0), slots=slots, renewal=32),
        "oracle": arms.chosen(gains.best(32), slots=slots, renewal=32, gists=True),
        "suffix": arms.chosen(best(longest_suffix), slots=32, renewal=32, gists=False),
    }
    found = measure(base, gistnet, items, chosen)
    assert found.nll["right"].mean() < found.nll["wrong"].mean() - 0.3
    assert found.nll["suffix"].mean() < found.nll["wrong"].mean() - 0.3
    np.testing.assert_allclose(found.nll["oracle"], found.nll["right"], atol=1e-4)
