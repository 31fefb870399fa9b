"""Fixtures for the models: a tiny base of each family, made once."""

from __future__ import annotations

import functools

import pytest
import torch

from megacontext.models.base_lm import BaseLM
from megacontext.testing.tiny_models import FAMILIES, tiny_base

_base = functools.cache(tiny_base)


@pytest.fixture(params=sorted(FAMILIES))
def base(request: pytest.FixtureRequest) -> BaseLM:
    """One base of every supported family."""
    return _base(request.param)


@pytest.fixture
def llama() -> BaseLM:
    """A base for what does not depend on the family."""
    return _base("llama")


@pytest.fixture
def rng() -> torch.Generator:
    """Seeded randomness."""
    return torch.Generator().manual_seed(1)
