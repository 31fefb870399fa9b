"""Statistics of gists: known values for known shapes of clouds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megacontext.errors import InvalidInput
from megacontext.training.diagnostics import gist_statistics


def cloud(n: int, g: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, g, d, generator=torch.Generator().manual_seed(seed))


def test_orthogonal_gists_use_every_direction() -> None:
    figures = gist_statistics(3 * torch.eye(8)[:, None], token_rms=3 / 8**0.5)
    assert figures == {
        "norm_ratio": pytest.approx(1.0),
        "cosine": pytest.approx(0.0, abs=1e-12),
        "effective_rank": pytest.approx(8.0),
    }


def test_collapsed_gists_are_one_direction() -> None:
    same = cloud(1, 2, 16).expand(5, 2, 16)
    figures = gist_statistics(same, token_rms=1.0)
    assert figures["cosine"] == pytest.approx(1.0)
    assert figures["effective_rank"] <= 2 + 1e-6
    node = cloud(5, 1, 16).expand(5, 4, 16)
    figures = gist_statistics(node, token_rms=1.0)
    assert figures["cosine_within"] == pytest.approx(1.0)
    assert figures["cosine"] < 0.5


def test_the_rank_weighs_directions_by_their_size() -> None:
    """Singular values 3 and 1: entropy of (3/4, 1/4), by hand."""
    gists = torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]])
    assert gist_statistics(gists, token_rms=1.0)["effective_rank"] == pytest.approx(4 / 3**0.75)


@given(st.integers(2, 9), st.integers(1, 3), st.integers(1, 12), st.floats(0.1, 10), st.integers(0, 99))
def test_scale_moves_the_norm_alone_and_all_pairs_count(n: int, g: int, d: int, scale: float, seed: int) -> None:
    gists = cloud(n, g, d, seed)
    one, two = gist_statistics(gists, token_rms=0.5), gist_statistics(scale * gists, token_rms=0.5)
    assert two.pop("norm_ratio") == pytest.approx(scale * one.pop("norm_ratio"), rel=1e-5)
    assert two == pytest.approx(one, rel=1e-4, abs=1e-4)
    assert 1 - 1e-9 <= one["effective_rank"] <= min(n * g, d) + 1e-6
    pairs = [
        torch.cosine_similarity(gists[i, k], gists[j, k], dim=0) for k in range(g) for i in range(n) for j in range(n) if i != j
    ]
    assert one["cosine"] == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-5)
    assert ("cosine_within" in one) == (g > 1)


def test_zeros_are_no_direction() -> None:
    assert gist_statistics(torch.zeros(3, 1, 4), token_rms=1.0) == {"norm_ratio": 0.0, "cosine": 0.0, "effective_rank": 0.0}


@pytest.mark.parametrize(
    ("gists", "rms", "complaint"),
    [
        (torch.ones(4, 8), 1.0, r"\[4, 8\]"),
        (torch.ones(1, 1, 8), 1.0, r"\[1, 1, 8\]"),
        (torch.ones(2, 1, 8), 0.0, "token_rms"),
        (torch.full((2, 1, 8), float("nan")), 1.0, "not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(gists: torch.Tensor, rms: float, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        gist_statistics(gists, token_rms=rms)
