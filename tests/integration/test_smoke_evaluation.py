"""The shipped checkpoint on a small smoke set: with all far context as gists, NLL stays within 5 % of reading it raw.

The set is drawn from standard-library packages that no training saw. The same figure of two controls, dropping the far
context and showing another package's gists, has to be above the threshold: else the test would pass with gists that carry
nothing.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import pytest

from megacontext.engine.bundle import Bundle, load_bundle
from megacontext.evaluation import arms
from megacontext.evaluation.items import draw_items
from megacontext.evaluation.quality import far_for, measure, report, swapped_gists
from megacontext.training.corpus import STDLIB_TEST
from megacontext.training.held_out import joined

PACKAGES = ("asyncio", "email", "http", "logging", "argparse", "ipaddress", "statistics")
ALLOWED = 0.05
"""Share of the NLL with the far context raw."""
ITEMS = 112
"""Sixteen a package: with four, the share's interval is as wide as the share (docs/log.md)."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    bundle = load_bundle("bundled")
    assert set(PACKAGES) <= STDLIB_TEST
    return figures(bundle)


def texts_of(name: str) -> list[str]:
    """The source files of a standard-library module or package, in order."""
    place = Path(sysconfig.get_paths()["stdlib"]) / name
    files = sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return [file.read_text(encoding="utf-8") for file in files]


def figures(bundle: Bundle) -> dict[str, Any]:
    """Share of ΔNLL for gists and controls on the smoke set."""
    histories = [joined(texts_of(name), bundle.tokenizer) for name in PACKAGES]
    far = far_for(bundle.base, tail=128, horizon=64)
    items = draw_items(histories, far=far, tail=128, horizon=64, count=ITEMS, seed=0)
    assert bundle.gists is not None
    chosen = {
        "full": arms.full,
        "drop": arms.recency(0),
        "gist": arms.gist,
        "swapped": arms.with_gists(swapped_gists(items, bundle.base, bundle.gists)),
    }
    return report(measure(bundle.base, bundle.gists, items, chosen))


def test_the_base_uses_the_far_context_of_the_smoke_set(found: dict[str, Any]) -> None:
    assert found["gate"]["judged"]


@pytest.mark.parametrize("control", ["drop", "swapped"])
def test_the_controls_fail_the_threshold(found: dict[str, Any], control: str) -> None:
    assert found["arms"][control]["delta_nll_share"] > ALLOWED


def test_gists_keep_the_nll_within_the_threshold(found: dict[str, Any]) -> None:
    share = found["arms"]["gist"]["delta_nll_share"]
    assert share <= ALLOWED, f"ΔNLL of gists is {share:.1%} of the NLL"
    assert found["arms"]["gist"]["nll"] < found["arms"]["drop"]["nll"] < found["arms"]["swapped"]["nll"]
    assert found["arms"]["gist"]["recovered"] >= 0.5
