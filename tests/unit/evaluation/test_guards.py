"""Bugs planted in copies of the benchmark, each of which has made such a figure worthless before. All must be caught."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from megacontext.engine.assemble import embed_slots, positions_of
from megacontext.errors import DatasetError, InvalidInput, InvariantError, ModelMismatch
from megacontext.evaluation import arms
from megacontext.evaluation.items import Items, draw_items
from megacontext.evaluation.measured import Measured, measure
from megacontext.evaluation.overlap import without_seen
from megacontext.evaluation.scoring import Chunk, FloatArray, Scorer
from megacontext.models import BaseLM
from megacontext.models.positions import WindowRanks
from megacontext.testing.tiny_bundle import tiny_gistnet
from megacontext.testing.tiny_models import tiny_base
from megacontext.training.dataset import to_blocks

FAR, TAIL, H = 128, 32, 32
ARMS = {"full": arms.full, "drop": arms.recency(0), "gist": arms.gist}


@pytest.fixture(scope="module")
def base() -> BaseLM:
    return tiny_base("llama")


def items_of(seed: int = 1) -> Items:
    rng = np.random.default_rng(0)
    return draw_items([rng.integers(0, 250, 400) for _ in range(3)], far=FAR, tail=TAIL, horizon=H, count=4, seed=seed)


class _Copy(Scorer):
    """A copy of the scorer with one bug: what the slots from ``first_slot`` on predict is scored."""

    def first_slot(self, chunk: Chunk) -> int:
        raise NotImplementedError

    def _score(self, chunks: Sequence[Chunk]) -> list[FloatArray]:
        found = []
        for chunk in chunks:
            whole, count = chunk.whole, len(chunk.following)
            first = self.first_slot(chunk)
            with torch.no_grad():
                places = torch.from_numpy(positions_of(whole, self.strategy, self.base.context_length))[None]
                logits = self.base.forward(embed_slots(whole, self.base), places).logits[0, first : first + count]
            targets = torch.from_numpy(np.ascontiguousarray(chunk.following))
            found.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().numpy())
        return found


class _Sound(_Copy):
    """The copy without a bug."""

    def first_slot(self, chunk: Chunk) -> int:
        return len(chunk.context) - 1


class _GistPositions(_Copy):
    """The targets are scored at the first slots of the window: gists, where there are any."""

    def first_slot(self, chunk: Chunk) -> int:
        return 0


class _OneEarly(_Copy):
    """The horizon is off by one: each token is scored where the token before it is predicted."""

    def first_slot(self, chunk: Chunk) -> int:
        return len(chunk.context) - 2


class _OneLate(_Copy):
    """The horizon is off by one: each token is scored after it was read."""

    def first_slot(self, chunk: Chunk) -> int:
        return len(chunk.context)


def test_a_copy_without_a_bug_passes(base: BaseLM) -> None:
    items, gistnet = items_of(), tiny_gistnet(base)
    copy, own = (measure(base, gistnet, items, ARMS, scorer=scorer(base=base)) for scorer in (_Sound, Scorer))
    for name in ARMS:
        np.testing.assert_allclose(copy.nll[name], own.nll[name], atol=1e-4)


@pytest.mark.parametrize("scorer", [_GistPositions, _OneEarly, _OneLate])
@pytest.mark.parametrize("arm", list(ARMS))
def test_scoring_at_other_slots_is_caught(base: BaseLM, scorer: type[_Copy], arm: str) -> None:
    gistnet = tiny_gistnet(base)
    with pytest.raises(InvariantError, match="something else than the tokens behind the window"):
        measure(base, gistnet, items_of(), {arm: ARMS[arm]}, scorer=scorer(base=base))


@pytest.mark.parametrize("shift", [-1, 1])
def test_an_arm_whose_targets_are_shifted_is_caught(base: BaseLM, shift: int) -> None:
    """A horizon that is off by one in the arm: the right number of tokens, but not those of the horizon."""

    def shifted(item: arms.Item) -> list[Chunk]:
        (chunk,) = arms.full(item)
        context = chunk.context.take(np.arange(item.context + min(0, shift)))
        following = np.roll(item.ids, -shift)[item.context :]
        return [Chunk(context=context, following=following, start=item.context)]

    with pytest.raises(InvariantError, match="something else"):
        measure(base, None, items_of(), {"full": shifted})


def test_an_arm_that_sees_its_answer_is_caught(base: BaseLM) -> None:
    """The context already holds the first scored tokens."""

    def peeking(item: arms.Item) -> list[Chunk]:
        (chunk,) = arms.full(item)
        seen = chunk.context.then(item.scored[:8], item.context, -1)
        return [Chunk(context=seen, following=item.scored, start=item.context)]

    with pytest.raises(InvariantError, match="reaches to token"):
        measure(base, None, items_of(), {"full": peeking})


def test_parts_are_scored_in_one_pass_only_where_nothing_moves() -> None:
    """Gists that stand apart move together as the window fills: then each part is scored where it stands."""
    base = tiny_base("llama", max_position_embeddings=FAR // 32 + TAIL + H + 4)
    gistnet = tiny_gistnet(base)
    parts = {"whole": arms.gist, "halves": arms.chosen(lambda *_: np.zeros(0, np.int64), slots=4, renewal=16, gists=True)}
    dense = measure(base, gistnet, items_of(), parts)
    np.testing.assert_array_equal(dense.nll["halves"], dense.nll["whole"])
    apart = measure(base, gistnet, items_of(), parts, scorer=Scorer(base=base, strategy=WindowRanks(6)))
    np.testing.assert_array_equal(apart.nll["halves"][:, 16:], apart.nll["whole"][:, 16:])
    assert np.abs(apart.nll["halves"] - apart.nll["whole"])[:, :16].max() > 1e-4


def test_items_from_the_training_split_are_refused(base: BaseLM) -> None:
    """Train and test overlap: the same document, though cut and aligned otherwise."""
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 250, 3000) for _ in range(4)]
    items = draw_items(histories, far=FAR, tail=TAIL, horizon=H, count=40, seed=0)
    elsewhere = to_blocks(rng.integers(0, 250, 5000).tolist(), 0)
    kept, facts = without_seen(items, *elsewhere)
    assert len(kept) == 40 and facts == {"checked": True, "items_left_out": 0, "tokens_shared": 0.0}
    leaked = to_blocks(histories[2][7:].tolist(), 0)
    with pytest.raises(DatasetError, match=r"\d+ of 40 items are made of text that the training split holds"):
        without_seen(items, *leaked)


def test_shared_boilerplate_is_no_overlap_and_a_single_copy_is_left_out() -> None:
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 250, 2_000_000) for _ in range(4)]
    items = draw_items(histories, far=FAR, tail=TAIL, horizon=H, count=100, seed=0)
    licence = to_blocks(np.concatenate([row[:64] for row in items.ids]).tolist(), 0)
    kept, facts = without_seen(items, *licence)
    assert len(kept) == 100 and 0 < facts["tokens_shared"] < 0.6
    kept, facts = without_seen(items, *to_blocks(items.ids[17].tolist(), 0))
    assert facts["items_left_out"] in (1, 2) and len(kept) == 100 - facts["items_left_out"]
    assert not (kept.ids == items.ids[17]).all(axis=1).any()


def test_references_of_another_model_are_refused(base: BaseLM) -> None:
    items, other = items_of(), tiny_base("llama", seed=7)
    mine = measure(base, tiny_gistnet(base), items, {"gist": arms.gist})
    theirs = measure(other, None, items, {"full": arms.full, "drop": arms.recency(0)})
    with pytest.raises(ModelMismatch, match="measure full and drop again"):
        mine.with_arms_of(theirs)
    whole = mine.with_arms_of(measure(base, None, items, {"full": arms.full, "drop": arms.recency(0)}))
    assert set(whole.nll) == {"gist", "full", "drop"}
    with pytest.raises(InvalidInput, match="other items"):
        mine.with_arms_of(measure(base, None, items_of(2), {"full": arms.full}))


def test_a_base_whose_weights_changed_is_another_model() -> None:
    """As LoRA or native training change them: the cached fingerprint would not tell."""
    base = tiny_base("llama", seed=3)
    items = items_of()
    before = measure(base, None, items, {"full": arms.full, "drop": arms.recency(0)})
    with torch.no_grad():
        base.model.get_input_embeddings().weight.mul_(1.01)
    after = measure(base, None, items, {"recency": arms.recency(32)})
    with pytest.raises(ModelMismatch, match="different base models"):
        before.with_arms_of(after)


def test_gists_made_for_another_base_are_refused(base: BaseLM) -> None:
    with pytest.raises(ModelMismatch, match="trained for the base"):
        measure(base, tiny_gistnet(tiny_base("llama", seed=7)), items_of(), {"gist": arms.gist})


def test_figures_are_of_the_arm_they_name() -> None:
    items = items_of()
    zeros = np.zeros(items.scored.shape)
    with pytest.raises(ModelMismatch):
        Measured(items=items, nll={"a": zeros, "b": zeros}, slots={"a": 0, "b": 0}, bases={"a": "1", "b": "2"})
