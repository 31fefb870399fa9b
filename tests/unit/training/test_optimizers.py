"""Muon steps are nearly orthogonal, parameters go where they belong, the schedule rises, stays and falls."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from megacontext.training.optimizers import Muon, build_optimizers, lr_factor, orthogonalise


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
def test_singular_values_are_pulled_to_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    before, after = torch.linalg.svdvals(matrix), torch.linalg.svdvals(orthogonalise(matrix))
    assert before.max() / before.min() > 5
    assert after.min() > 0.5 and after.max() < 1.3


def test_direction_is_kept_and_scale_is_not() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(12, 20)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalise(matrix)
    assert torch.nn.functional.cosine_similarity(result.flatten(), (u @ vh).flatten(), dim=0) > 0.95
    torch.testing.assert_close(orthogonalise(1000 * matrix), result, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(orthogonalise(matrix.T), result.T, atol=1e-5, rtol=1e-5)


def test_a_zero_gradient_moves_nothing() -> None:
    weight = nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.zeros(3, 4)
    Muon([weight], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(weight.data, torch.ones(3, 4))


def test_muon_descends() -> None:
    torch.manual_seed(0)
    target, weight = torch.randn(8, 8), nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([weight], lr=0.05, weight_decay=0.0)
    losses = []
    for _ in range(100):
        loss = (weight - target).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]


def test_matrices_go_to_muon_and_the_rest_to_adamw() -> None:
    model = nn.ModuleDict(
        {"embed": nn.Embedding(5, 4), "inner": nn.Linear(4, 6), "norm": nn.LayerNorm(6), "out": nn.Linear(6, 1)}
    )
    model["norm"].weight.requires_grad_(False)
    muon, adam = build_optimizers(model.named_parameters(), matrix_lr=0.02, other_lr=0.003)
    ids = [{id(p) for group in o.param_groups for p in group["params"]} for o in (muon, adam)]
    assert ids[0] == {id(model["inner"].weight)}
    assert ids[1] == {id(p) for p in model.parameters() if p.requires_grad} - ids[0]


def test_the_schedule() -> None:
    factors = [lr_factor(step, steps=100, warmup=10, decay_from=0.5) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == pytest.approx(1.0)
    assert factors[10:51] == [1.0] * 41
    assert all(a > b for a, b in itertools.pairwise(factors[51:]))
    assert 0.05 <= factors[-1] < 0.1
    assert lr_factor(500, steps=100, warmup=10, decay_from=0.5) == 0.05
