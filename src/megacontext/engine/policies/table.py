"""The focus policies by the names that users write."""

from __future__ import annotations

from typing import Literal, get_args

from megacontext.engine.bundle import Bundle
from megacontext.engine.policies.base import FocusPolicy
from megacontext.engine.policies.hybrid import Hybrid
from megacontext.engine.policies.lens import Lens
from megacontext.engine.policies.random import Random
from megacontext.engine.policies.recency import Recency
from megacontext.engine.policies.retrieval import Retrieval
from megacontext.engine.policies.suffix import Suffix
from megacontext.errors import ConfigError

PolicyName = Literal["auto", "hybrid", "lens", "suffix", "retrieval", "recency", "random"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)


def policy_named(name: str, bundle: Bundle) -> FocusPolicy:
    """The policy of this name for these models; ``auto`` is the best that they can do: see ``docs/focus.md``.

    Raises ConfigError for an unknown name, or one that needs a LensNet where there is none.
    """
    if name not in POLICIES:
        raise ConfigError(f"no focus policy {name!r}: choose {', '.join(POLICIES)}")
    if name == "lens" and bundle.lens is None:
        raise ConfigError(f"{bundle.name} has no LensNet: choose hybrid, or train one with megacontext train lens")
    if name == "auto":
        name = "hybrid" if bundle.lens is not None else "retrieval"
    if bundle.lens is not None and name == "lens":
        return Lens(bundle.lens, bundle.base)
    if name == "hybrid":
        # A LensNet in nats beside it, `Hybrid(lens)`, made no clear difference on long histories (docs/focus.md).
        return Hybrid()
    plain: dict[str, type[Suffix] | type[Retrieval] | type[Recency] | type[Random]] = {
        "suffix": Suffix,
        "retrieval": Retrieval,
        "recency": Recency,
        "random": Random,
    }
    return plain[name]()
