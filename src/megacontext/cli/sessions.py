"""Sessions that commands open: kept under a name, or gone when the command ends, however it ends."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from megacontext.core import WorkingContext
    from megacontext.engine.events import Listener
    from megacontext.engine.memory import Memory
    from megacontext.engine.session import Session


class Policy(StrEnum):
    """What decides what is read in detail."""

    auto = "auto"
    hybrid = "hybrid"
    lens = "lens"
    suffix = "suffix"
    retrieval = "retrieval"
    recency = "recency"
    random = "random"


Budget = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        min=1,
        help="Size of the window that the model reads, in tokens (a gist counts as one). "
        "Without it: 1024, or less where the model's own window is smaller.",
    ),
]
Focus = Annotated[
    Policy,
    typer.Option(
        metavar="auto|hybrid|lens|suffix|retrieval|recency|random",
        help="What decides what is read in detail. hybrid: what the indexes point to strongly, anywhere in the memory; "
        "suffix: where the last words stood before; retrieval: BM25. auto: hybrid if the model has a LensNet, else retrieval.",
    ),
]


@contextmanager
def opened(
    memory: Memory, *, budget: int | None, policy: Policy, name: str | None = None, listener: Listener | None = None
) -> Iterator[Session]:
    """A session on a branch of its own. Without a `name` the branch is dropped at the end, on errors and interrupts
    too; so is a new one under a name where the session could not even begin."""
    from megacontext.engine.events import nobody
    from megacontext.engine.memory import SESSIONS

    branch = SESSIONS + (name or f"once-{secrets.token_hex(4)}")
    keep = branch in memory.repository.branches()
    try:
        with memory.session(
            budget=budget, name=branch.removeprefix(SESSIONS), policy=policy.value, listener=listener or nobody
        ) as session:
            keep = keep or name is not None
            yield session
    finally:
        if not keep and branch in memory.repository.branches():
            memory.drop_session(branch)


def window_facts(window: WorkingContext) -> dict[str, Any]:
    """A window for programs; `levels` counts entries by level of detail (0: raw blocks)."""
    import numpy as np

    lods, counts = np.unique(window.lod, return_counts=True)
    return {
        "budget": window.budget,
        "cost": window.cost,
        "tokens": window.timeline.tokens,
        "entries": len(window),
        "levels": {str(lod): count for lod, count in zip(lods.tolist(), counts.tolist(), strict=True)},
    }
