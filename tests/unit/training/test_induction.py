"""The written circuit copies from far back before any training."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from megacontext.testing.tiny_models import tiny_model
from megacontext.training.config import BaseShape
from megacontext.training.induction import CodeSpace, build_base, circuit_pairs, hold_circuit

VOCAB = 512
SHAPE = BaseShape(width=120, layers=2, context_length=512)


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
    shape = SHAPE.model_copy(update={"frozen_circuit": False})
    model = build_base(shape, vocab_size=VOCAB, eos=0).train()
    ids = torch.randint(1, VOCAB, (2, 48), generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # what writes to the stream starts at zero, so what feeds it moves from the second step on
        optimizer.zero_grad()
        torch.autograd.backward(model(input_ids=ids, labels=ids, use_cache=False).loss)
        optimizer.step()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_the_circuit_is_frozen_unless_told_otherwise() -> None:
    model = build_base(SHAPE, vocab_size=VOCAB, eos=0)
    frozen = {name.removeprefix("model.layers.") for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen} == {"0", "1"}
    assert not [name for name in frozen if name.startswith("1.") and ("mlp" in name or "o_proj" in name)]


def test_embeddings_stay_in_the_codes_subspace_and_keep_the_rest() -> None:
    model = build_base(SHAPE, vocab_size=VOCAB, eos=0, surprisal=torch.linspace(1.0, 9.0, VOCAB))
    codes = CodeSpace(model)
    weight = model.model.embed_tokens.weight
    before = weight.detach().clone()
    codes.settle()
    torch.testing.assert_close(weight.detach(), before, atol=1e-5, rtol=0)
    with torch.no_grad():
        weight.add_(torch.randn_like(weight))
    codes.settle()
    moved = weight.detach() - before
    assert torch.linalg.matrix_rank(moved) == SHAPE.pairs * SHAPE.head_dim
    settled = weight.detach().clone()
    codes.settle()
    torch.testing.assert_close(weight.detach(), settled, atol=1e-4, rtol=1e-4)


def test_look_back_finds_the_token_before_at_every_distance() -> None:
    """Rotary planes repeat: over the whole range, no place may look like the one before."""
    shape = BaseShape(width=120, layers=2)
    model = build_base(shape, vocab_size=VOCAB, eos=0)
    ids = torch.randint(1, VOCAB, (1, shape.context_length), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        x = model.model.embed_tokens(ids)
        added = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[1] - x
        seen = model.model.layers[0].self_attn.v_proj(model.model.layers[0].input_layernorm(x))
        written = model.model.layers[0].self_attn.o_proj.weight
    one_back = slice(0, shape.pairs * shape.head_dim)
    expected = F.pad(seen, (0, 0, 1, 0))[:, :-1, one_back] @ written[:, one_back].T
    place = written[:, one_back] @ written[:, one_back].T / 0.1**2
    error = ((added - expected) @ place)[0, 1:].norm(dim=-1) / expected[0, 1:].norm(dim=-1)
    assert error.max() < 0.1


def test_a_saved_base_tells_of_its_circuit_and_others_are_left_alone(tmp_path: Path) -> None:
    build_base(SHAPE, vocab_size=VOCAB, eos=0).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert circuit_pairs(loaded) == SHAPE.pairs and all(p.requires_grad for p in loaded.parameters())
    hold_circuit(loaded)
    assert not loaded.model.layers[0].self_attn.v_proj.weight.requires_grad
    other = tiny_model("llama")
    assert circuit_pairs(other) is None
    before = other.get_input_embeddings().weight.detach().clone()
    hold_circuit(other)()
    assert all(p.requires_grad for p in other.parameters())
    assert torch.equal(other.get_input_embeddings().weight, before)
