"""The written circuit copies from far back before any training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from megacontext.training.config import BaseConfig, BaseShape, load_config
from megacontext.training.induction import build_base

VOCAB = 512
CONFIGS = Path(__file__).parents[3] / "configs"
SHAPE = BaseShape(width=96, layers=2, context_length=512)


def second_copy_gain(*, induction: bool, gap: int = 0) -> float:
    """How much lower, in nats, the loss of a random sequence is where it is repeated ``gap`` tokens later."""
    model = build_base(SHAPE.model_copy(update={"induction": induction}), vocab_size=VOCAB, eos=0).eval()
    rng = torch.Generator().manual_seed(1)
    first = torch.randint(1, VOCAB, (4, 64), generator=rng)
    between = torch.randint(1, VOCAB, (4, gap), generator=rng)
    ids = torch.cat([first, between, first], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    nll = F.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
    # The first tokens of the second copy cannot know yet that it is one.
    return float(nll[:, :63].mean() - nll[:, -60:].mean())


def test_the_second_copy_of_a_random_sequence_is_predicted() -> None:
    assert second_copy_gain(induction=True) > 0.5
    assert second_copy_gain(induction=True, gap=320) > 0.5


def test_without_the_circuit_nothing_is() -> None:
    assert abs(second_copy_gain(induction=False)) < 0.05


def test_the_same_seed_gives_the_same_weights() -> None:
    one, two, other = (build_base(SHAPE, vocab_size=VOCAB, eos=0, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_every_weight_gets_a_gradient_within_two_steps() -> None:
    model = build_base(SHAPE, vocab_size=VOCAB, eos=0).train()
    ids = torch.randint(1, VOCAB, (2, 48), generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # what writes to the stream starts at zero, so what feeds it moves from the second step on
        optimizer.zero_grad()
        torch.autograd.backward(model(input_ids=ids, labels=ids, use_cache=False).loss)
        optimizer.step()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("name", ["base", "gpu/base"])
def test_look_back_finds_the_tokens_before_at_every_distance(name: str) -> None:
    """Rotary planes repeat: over the whole range, no place may look like the one before."""
    shape = load_config(BaseConfig, CONFIGS / f"{name}.yaml").shape.model_copy(update={"width": 96, "layers": 2})
    model = build_base(shape, vocab_size=VOCAB, eos=0)
    model.set_attn_implementation("eager")
    ids = torch.randint(1, VOCAB, (1, shape.context_length), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        attention = model.model(input_ids=ids, output_attentions=True, use_cache=False).attentions[0][0]
    for head, distance in ((0, 1), (1, 2)):
        assert attention[head].diagonal(-distance).min() > 0.75
