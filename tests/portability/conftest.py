"""Everything here is the portability matrix: one base of each family, made once, and the families as rows."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from megacontext.models.base_lm import BaseLM
from megacontext.testing.tiny_models import FAMILIES, tiny_base

_base = functools.cache(tiny_base)
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in this folder."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.portability)


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """A row of the matrix."""
    return str(request.param)


@pytest.fixture
def base(family: str) -> BaseLM:
    """A base of that family, shared by the tests: it must not be changed."""
    return _base(family)


@pytest.fixture
def rng() -> torch.Generator:
    """Seeded randomness."""
    return torch.Generator().manual_seed(1)
