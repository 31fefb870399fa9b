"""The quality benchmark: arms on held-out items, with paired intervals. The form is that of ``bench quality``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext.core import BLOCK
from megacontext.engine.bundle import Bundle
from megacontext.engine.policies import Random, Recency
from megacontext.engine.policies.lens import Lens
from megacontext.evaluation import arms
from megacontext.evaluation.bootstrap import group_weights, interval, weighted_mean
from megacontext.evaluation.items import Items
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.gist_baselines import MeanPoolGist

FloatArray = npt.NDArray[np.float64]
GATE_ALL, GATE_FAR_COPY = 0.05, 0.2


@dataclass(frozen=True, kw_only=True)
class Measured:
    """NLL float64 [items, H] and slots beside the tail of each arm, on the same items."""

    items: Items
    nll: Mapping[str, FloatArray]
    slots: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, values in self.nll.items():
            if values.shape != self.items.ids[:, self.items.context :].shape:
                raise ValueError(f"arm {name} did not score exactly the horizon: {values.shape}")


def measure(
    base: BaseLM,
    encoder: GistEncoder | None,
    items: Items,
    chosen: Mapping[str, arms.Arm],
    *,
    progress: Callable[[], None] = lambda: None,
) -> Measured:
    """Run the ``chosen`` arms on every item; ``swapped`` gets the gists of the item before it."""
    scorer = arms.Scorer(base=base)
    nll: dict[str, list[FloatArray]] = {name: [] for name in chosen}
    slots: dict[str, list[float]] = {name: [] for name in chosen}
    for ids in items.ids:
        reader = arms.make_reader(ids, encoder, base)
        item = arms.Item(ids=ids, far=items.far, tail=items.tail, reader=reader)
        for name, arm in chosen.items():
            result = arm(item, scorer)
            nll[name].append(result.nll)
            slots[name].append(result.slots)
        progress()
    return Measured(
        items=items,
        nll={name: np.stack(rows) for name, rows in nll.items()},
        slots={name: float(np.mean(values)) for name, values in slots.items()},
    )


def standard_arms(bundle: Bundle, items: Items, *, slots: int, renewal: int = 16) -> dict[str, arms.Arm]:
    """The arms that this bundle can run, for ``slots`` beside the tail; recency also at the gists' slots."""
    base, encoder = bundle.base, bundle.gists
    blocks = items.far // BLOCK
    chosen: dict[str, arms.Arm] = {
        "drop": arms.recency(0),
        f"recency_{slots}": arms.recency(slots),
        f"recency_sinks_{slots}": arms.recency_sinks(slots),
    }
    if items.context + items.horizon <= base.context_length:
        chosen["full"] = arms.full
    if encoder is None:
        return chosen
    chosen |= {
        f"recency_{blocks}": arms.recency(blocks * encoder.vectors),
        "gist": arms.gist,
        "swapped": arms.with_gists(swapped_gists(items, base, encoder)),
        "noise": arms.with_gists(arms.noise),
        "mean": arms.with_gists(_encoded_by(MeanPoolGist(base.width, base.embedding_rms), base)),
        "recent_expand": arms.focused(Recency(), slots=slots, renewal=renewal),
        "random_expand": arms.focused(Random(0), slots=slots, renewal=renewal),
    }
    if bundle.lens is not None:
        chosen["megacontext"] = arms.focused(Lens(bundle.lens, base), slots=slots, renewal=renewal)
    return chosen


def swapped_gists(items: Items, base: BaseLM, encoder: GistEncoder) -> Callable[[arms.Item], npt.NDArray[np.float16]]:
    """Gists of another history in the same places: those of the next item from another group."""

    def change(item: arms.Item) -> npt.NDArray[np.float16]:
        at = int(np.flatnonzero((items.ids == item.ids).all(axis=1))[0])
        others = np.flatnonzero(items.group != items.group[at])
        if not len(others):
            others = np.flatnonzero(np.arange(len(items)) != at)
        other = int(others[at % len(others)])
        return arms.make_reader(items.ids[other], encoder, base).gists[1]

    return change


def _encoded_by(encoder: GistEncoder, base: BaseLM) -> Callable[[arms.Item], npt.NDArray[np.float16]]:
    return lambda item: arms.make_reader(item.ids, encoder, base).gists[1]


def report(measured: Measured, *, seed: int = 0, pairs: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Gate, figures of every arm and paired differences, as plain data (the form of BENCHMARKS §4)."""
    items = measured.items
    weights = group_weights(items.group, seed)
    everything = np.ones((len(items), items.horizon), dtype=np.bool_)
    masks = {"all": everything, "far_copy": items.far_copy}
    return {
        "gate": gate(measured, weights),
        "arms": {name: _arm_figures(measured, name, masks, weights) for name in measured.nll},
        "differences": {
            f"{a}-{b}": {
                **_difference(measured, a, b, masks["all"], weights),
                "far_copy": _difference(measured, a, b, masks["far_copy"], weights),
            }
            for a, b in pairs
            if a in measured.nll and b in measured.nll
        },
    }


def gate(measured: Measured, weights: FloatArray) -> dict[str, Any]:
    """Whether the base uses far context on these items at all; without ``full`` nothing is judged."""
    if "full" not in measured.nll or "drop" not in measured.nll:
        return {"judged": False}
    gap = measured.nll["drop"] - measured.nll["full"]
    items = measured.items
    everything, copied = np.ones(gap.shape, dtype=np.bool_), items.far_copy
    ci = interval(weighted_mean(gap, copied, weights))
    mean, copy_mean = float(gap.mean()), float(gap[copied].mean()) if copied.any() else float("nan")
    return {
        "judged": bool(mean >= GATE_ALL and copy_mean >= GATE_FAR_COPY and ci[0] > 0),
        "drop_minus_full": mean,
        "drop_minus_full_ci": interval(weighted_mean(gap, everything, weights)),
        "drop_minus_full_far_copy": copy_mean,
        "ci": ci,
    }


def _arm_figures(
    measured: Measured, name: str, masks: Mapping[str, npt.NDArray[np.bool_]], weights: FloatArray
) -> dict[str, Any]:
    figures = {key: _masked_figures(measured, name, mask, weights) for key, mask in masks.items()}
    return {**figures["all"], "slots": measured.slots[name], "far_copy": figures["far_copy"]}


def _masked_figures(measured: Measured, name: str, mask: npt.NDArray[np.bool_], weights: FloatArray) -> dict[str, Any]:
    own = measured.nll[name]
    figures: dict[str, Any] = {
        "nll": float(own[mask].mean()),
        "nll_ci": interval(weighted_mean(own, mask, weights)),
    }
    if "full" not in measured.nll:
        return figures
    full, drop = measured.nll["full"], measured.nll["drop"]
    one = np.ones((1, len(own)))
    figures["delta_nll"] = float((own - full)[mask].mean())
    figures["recovered"] = float(_recovered(drop, own, full, mask, one)[0])
    figures["recovered_ci"] = interval(_recovered(drop, own, full, mask, weights))
    return figures


def _recovered(
    drop: FloatArray, own: FloatArray, full: FloatArray, mask: npt.NDArray[np.bool_], weights: FloatArray
) -> FloatArray:
    result: FloatArray = weighted_mean(drop - own, mask, weights) / weighted_mean(drop - full, mask, weights)
    return result


def _difference(measured: Measured, a: str, b: str, mask: npt.NDArray[np.bool_], weights: FloatArray) -> dict[str, Any]:
    values = measured.nll[a] - measured.nll[b]
    return {"diff": float(values[mask].mean()), "ci": interval(weighted_mean(values, mask, weights))}
