"""Losses: what they are zero for, what they push where, and that what weighs nothing is not computed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from megacontext.errors import ConfigError, InvalidInput
from megacontext.testing.tiny_models import tiny_base
from megacontext.training.loss_mix import LossMix
from megacontext.training.losses import (
    TopTeacher,
    combine,
    contrastive_margin,
    hidden_pool_loss,
    hidden_states,
    kl_to_teacher,
)

V = 40


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_kl_is_that_of_torch_and_zero_for_the_teacher_itself() -> None:
    student, teacher = drawn(3, 5, V), 2 * drawn(3, 5, V, seed=1)
    expected = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    torch.testing.assert_close(kl_to_teacher(student, teacher), expected)
    assert kl_to_teacher(teacher + 3.0, teacher).abs().max() < 1e-6
    assert kl_to_teacher(teacher + 3.0, TopTeacher.of(teacher, 8)).abs().max() < 1e-6


@given(st.integers(1, V), st.integers(0, 1000))
def test_cached_logits_never_give_more_than_the_full_divergence(k: int, seed: int) -> None:
    student, teacher = 2 * drawn(4, V, seed=seed), 2 * drawn(4, V, seed=seed + 1)
    full, top = kl_to_teacher(student, teacher), kl_to_teacher(student, TopTeacher.of(teacher, k))
    assert (top <= full + 1e-4).all() and (top >= -1e-5).all()
    if k == V:
        torch.testing.assert_close(top, full, atol=1e-4, rtol=1e-4)


def test_the_rest_of_the_mass_counts() -> None:
    """Without the bucket, a student that puts everything outside the cached tokens would get away with it."""
    teacher = torch.zeros(1, V)
    teacher[0, :4] = 8.0
    outside, inside = torch.zeros(1, V), torch.zeros(1, V)
    outside[0, 10], inside[0, :4] = 8.0, 8.0
    cached = TopTeacher.of(teacher, 4)
    assert kl_to_teacher(outside, cached) > 5 > 0.1 > kl_to_teacher(inside, cached)


@pytest.mark.parametrize("k", [None, 8])
def test_descending_the_kl_reaches_the_teacher_and_leaves_it_alone(k: int | None) -> None:
    logits = drawn(6, V, seed=3).requires_grad_()
    teacher = logits.detach().roll(1, 0).requires_grad_()
    student = torch.zeros(6, V, requires_grad=True)
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        kl_to_teacher(student, teacher if k is None else TopTeacher.of(teacher, k)).mean().backward()
        optimizer.step()
    assert teacher.grad is None
    top = teacher.detach().topk(4).indices
    gap = (student.log_softmax(-1) - teacher.log_softmax(-1)).gather(1, top)
    assert gap.abs().max() < 0.05


def test_a_cache_in_half_precision_is_good_enough() -> None:
    student, teacher = drawn(50, V), 3 * drawn(50, V, seed=1)
    exact = TopTeacher.of(teacher, 8)
    half = TopTeacher(log_probs=exact.log_probs.half(), indices=exact.indices)
    assert (kl_to_teacher(student, half) - kl_to_teacher(student, exact)).abs().max() < 0.02


def test_a_teacher_of_other_tokens_is_refused() -> None:
    with pytest.raises(InvalidInput, match="student's shape"):
        kl_to_teacher(drawn(3, V), drawn(4, V))
    with pytest.raises(InvalidInput, match="teacher's tokens"):
        kl_to_teacher(drawn(3, V), TopTeacher.of(drawn(4, V)))
    with pytest.raises(InvalidInput, match="one shape"):
        TopTeacher(log_probs=drawn(3, 4), indices=torch.zeros(3, 5, dtype=torch.int64))


@pytest.mark.parametrize(("tokens", "pool"), [(16, 8), (19, 8), (5, 8), (7, 1)])
def test_pooled_hidden_states_are_matched_on_average(tokens: int, pool: int) -> None:
    teacher = drawn(2, tokens, 12)
    assert float(hidden_pool_loss(teacher, teacher, pool=pool)) == 0
    assert float(hidden_pool_loss(torch.zeros_like(teacher), teacher, pool=pool)) == pytest.approx(1.0)
    mixed = torch.cat([part.flip(1) for part in teacher.split(pool, dim=1)], dim=1)
    assert float(hidden_pool_loss(mixed, teacher, pool=pool)) == pytest.approx(0.0, abs=1e-6)
    if pool > 1:
        # What differs from one stretch to the next does count.
        assert float(hidden_pool_loss(teacher.roll(pool, 1), teacher, pool=pool)) > 0.1 or tokens <= pool


def test_the_gradient_of_hidden_states_reaches_the_student_only() -> None:
    student, teacher = drawn(2, 9, 4).requires_grad_(), drawn(2, 9, 4, seed=1).requires_grad_()
    hidden_pool_loss(student, teacher, pool=4).backward()
    assert teacher.grad is None and student.grad is not None and (student.grad.abs().sum(-1) > 0).all()
    with pytest.raises(InvalidInput, match="hidden states"):
        hidden_pool_loss(student, teacher[:, :5])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_hidden_states_are_those_that_logits_are_made_of(family: str) -> None:
    base = tiny_base(family)
    ids = torch.arange(20).view(1, -1)
    with hidden_states(base) as caught:
        logits = base.forward(base.embed(ids), torch.arange(20).view(1, -1), logits_from=12).logits
    torch.testing.assert_close(base.model.get_output_embeddings()(caught[0])[:, -8:], logits)
    base.forward(base.embed(ids), torch.arange(20).view(1, -1))
    assert len(caught) == 1


def test_the_margin_is_to_the_hardest_negative() -> None:
    gists = torch.eye(4, 8)
    assert float(contrastive_margin(gists, gists, margin=0.5)) == 0
    assert float(contrastive_margin(gists, gists, margin=1.25)) == pytest.approx(0.25)
    beside = torch.stack([0.8 * gists + 0.6 * torch.eye(8)[7], torch.eye(8)[6].expand(4, -1)], dim=1)
    assert float(contrastive_margin(gists, gists, margin=0.5, neighbours=beside)) == pytest.approx(0.3)
    assert float(contrastive_margin(gists, -gists, margin=0.5)) == pytest.approx(1.5)
    with pytest.raises(InvalidInput, match="no negatives"):
        contrastive_margin(gists[:1], gists[:1])


def test_descending_the_margin_separates_a_gist_from_its_neighbour() -> None:
    positives = drawn(6, 16)
    beside = positives[:, None] + 0.1 * drawn(6, 1, 16, seed=1)
    gists = beside[:, 0].clone().requires_grad_()
    optimizer = torch.optim.Adam([gists], lr=0.02)

    def gap() -> float:
        near = torch.nn.functional.cosine_similarity(gists, positives)
        return float((near - torch.nn.functional.cosine_similarity(gists, beside[:, 0])).min().detach())

    before = gap()
    for _ in range(100):
        optimizer.zero_grad()
        contrastive_margin(gists, positives, margin=0.05, neighbours=beside).backward()
        optimizer.step()
    assert before < 0 < gap()


def test_only_what_weighs_something_is_computed() -> None:
    called = []

    def term(name: str, value: float) -> Tensor:
        called.append(name)
        return torch.tensor(value, requires_grad=True)

    terms = {name: lambda n=name, v=value: term(n, v) for name, value in {"nll": 2.0, "kl": 3.0, "hidden": 5.0}.items()}
    total, figures = combine(LossMix(nll=1.0, hidden=0.5), terms)
    assert sorted(called) == ["hidden", "nll"]
    assert float(total.detach()) == 4.5 and total.requires_grad
    assert figures == {"nll": 2.0, "hidden": 5.0}
    with pytest.raises(ConfigError, match="contrastive, reconstruction"):
        combine(LossMix(contrastive=1, reconstruction=1), terms)


def test_a_mix_of_nothing_or_less_is_refused() -> None:
    assert LossMix().wanted == {"nll": 1.0}
    for wrong in ({"nll": 0}, {"kl": -1}, {"kll": 1}):
        with pytest.raises(ValidationError):
            LossMix(**wrong)
