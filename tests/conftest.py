"""Settings for all tests: no hub, one thread, no state left over."""

from __future__ import annotations

import os

# Before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Shared machines stall; a slow example is no failure. Derandomised: the same examples on every run.
settings.register_profile("megacontext", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("megacontext")


LONG = bool(os.environ.get("MEGACONTEXT_LONG_TESTS"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what takes minutes, unless asked for."""
    if LONG:
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread for tensors: tests run side by side. Leaves torch alone until a test has loaded it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    yield
    torch = sys.modules.get("torch")
    if torch is not None and not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        pytest.fail("this test left gradients switched off for those that follow")
