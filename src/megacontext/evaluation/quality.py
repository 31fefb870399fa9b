"""The arms of ``bench quality`` that a bundle can run, at the gists' slots and at budgets between gists and all raw."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from megacontext.core import BLOCK
from megacontext.engine.bundle import Bundle
from megacontext.engine.policies import Random, Recency
from megacontext.engine.policies.lens import Lens
from megacontext.errors import ConfigError
from megacontext.evaluation import arms, choices
from megacontext.evaluation.gists import GistBank, blocks_of, mean_gists, token_counts
from megacontext.evaluation.items import Items
from megacontext.evaluation.measured import Measured, measure
from megacontext.evaluation.oracle import Gains
from megacontext.evaluation.report import Figures, report
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.bi_encoder import BiEncoder

__all__ = ["Figures", "Measured", "budget_arms", "budget_slots", "gist_arms", "measure", "report", "swapped_gists"]

FARS = (3968, 1920, 896)
"""Far contexts, in tokens, of bases that were trained for 4,096, 2,048 and 1,024 (with the tail)."""
BUDGETS = ("1/4", "1/8", "1/16")
PAIRS = (
    ("gist", "drop"),
    ("gist", "recency"),
    ("gist", "recency_sinks"),
    ("gist", "mean"),
    ("gist", "rarest"),
    ("gist", "noise"),
    ("gist", "swapped"),
    ("swapped", "drop"),
)
BUDGET_PAIRS = (
    ("megacontext", "gist"),
    ("megacontext", "recency"),
    ("megacontext", "recency_sinks"),
    ("megacontext", "suffix"),
    ("megacontext", "bm25"),
    ("megacontext", "dense"),
    ("megacontext", "cosine"),
    ("megacontext", "random_expand"),
    ("megacontext", "recent_expand"),
    ("recent_expand", "recency"),
    ("oracle", "megacontext"),
)
F16 = npt.NDArray[np.float16]


def far_for(base: BaseLM, *, tail: int, horizon: int) -> int:
    """The longest of the usual far contexts that ``base`` can read raw; for tiny bases what fits, at least one block."""
    room = base.context_length - tail - horizon
    return next((far for far in FARS if far <= room), max(BLOCK, room // BLOCK * BLOCK))


def gist_arms(bundle: Bundle, items: Items, *, bank: GistBank | None = None) -> dict[str, arms.Arm]:
    """Everything at the slots of the gists alone, with the references; without an encoder, recency at far/32 slots."""
    base, encoder = bundle.base, bundle.gists
    slots = items.far // BLOCK * (encoder.vectors if encoder is not None else 1)
    chosen: dict[str, arms.Arm] = {}
    if items.context + items.horizon <= base.context_length:
        chosen["full"] = arms.full
    chosen |= {"drop": arms.recency(0), "recency": arms.recency(slots), "recency_sinks": arms.recency_sinks(slots)}
    if slots <= arms.SINKS:
        del chosen["recency_sinks"]
    if encoder is None:
        return chosen
    if slots + items.tail + items.horizon > base.context_length:
        raise ConfigError(
            f"{slots} gists, a tail of {items.tail} and {items.horizon} scored tokens do not fit into the base's "
            f"{base.context_length} positions: choose a shorter --far"
        )
    counts = token_counts(items, base.vocab_size)

    def blocks(item: arms.Item) -> npt.NDArray[np.int64]:
        return blocks_of(item.ids)

    return chosen | {
        "mean": arms.with_gists(lambda item: mean_gists(blocks(item), base, encoder)),
        "rarest": arms.rarest(counts, encoder.vectors),
        "noise": arms.with_gists(arms.noise(encoder)),
        "swapped": arms.with_gists(swapped_gists(items, base, encoder, bank=bank)),
        "gist": arms.gist,
    }


def budget_slots(far: int, budget: str) -> int:
    """The slots W beside the tail of a budget such as ``1/4`` of the far context."""
    return int(far * Fraction(budget))


def budget_arms(
    bundle: Bundle,
    items: Items,
    *,
    slots: int,
    renewal: int,
    gains: Gains | None = None,
    dense: BiEncoder | None = None,
) -> dict[str, arms.Arm]:
    """Everything at ``slots`` beside the tail; arms that choose are asked again every ``renewal`` tokens.

    The oracle only with ``gains``, ``dense`` with a bi-encoder. Arms with gists are left out where the gists alone take more
    than ``slots``; where not one block more can be opened, only ``megacontext`` is left of those, since all are the same.
    """
    base, encoder = bundle.base, bundle.gists
    rules: dict[str, choices.Rule] = {"suffix": choices.longest_suffix, "bm25": choices.bm25}
    if dense is not None:
        rules["dense"] = choices.dense(dense, base)
    chosen: dict[str, arms.Arm] = {
        "recency": arms.recency(slots),
        "recency_sinks": arms.recency_sinks(slots),
        **{name: arms.chosen(choices.best(rule), slots=slots, renewal=renewal, gists=False) for name, rule in rules.items()},
    }
    if encoder is None or items.far // BLOCK * encoder.vectors > slots:
        return chosen
    if not arms.openings(items.far // BLOCK, slots, encoder.vectors):
        return {**chosen, "megacontext": arms.gist} if bundle.lens is not None else chosen
    chosen["random_expand"] = arms.focused(Random(0), slots=slots, renewal=renewal)
    chosen["recent_expand"] = arms.focused(Recency(), slots=slots, renewal=renewal)
    chosen["cosine"] = arms.focused(choices.Cosine(base), slots=slots, renewal=renewal)
    if bundle.lens is not None:
        chosen["megacontext"] = arms.focused(Lens(bundle.lens, base), slots=slots, renewal=renewal)
    if gains is not None:
        chosen["oracle"] = arms.chosen(gains.best(renewal), slots=slots, renewal=renewal, gists=True)
    return chosen


RENEWED = frozenset(
    {"suffix", "bm25", "dense", "random_expand", "recent_expand", "cosine", "megacontext", "oracle"},
)
"""Arms that choose, and so depend on the renewal interval."""


def swapped_gists(
    items: Items, base: BaseLM, encoder: GistEncoder, *, bank: GistBank | None = None
) -> Callable[[arms.Item], F16]:
    """Gists of another history in the same places: a control that only real information beats."""
    made = bank or GistBank(items, base, encoder)
    return lambda item: made(items.other(item.row))


def unneeded_arms(bundle: Bundle, items: Items, *, bank: GistBank | None = None) -> dict[str, arms.Arm]:
    """A complete raw context, alone and behind another history's gists; empty where both do not fit the base."""
    base, encoder = bundle.base, bundle.gists
    if encoder is None:
        return {}
    gists = items.far // BLOCK * encoder.vectors
    raw = min(items.far, (base.context_length - gists - items.tail - items.horizon) // BLOCK * BLOCK)
    if raw < 0:
        return {}
    return {
        "alone": arms.in_front(None, raw),
        "behind_unrelated": arms.in_front(swapped_gists(items, base, encoder, bank=bank), raw),
    }
