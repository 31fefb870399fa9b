"""Figures from measured arms: NLL, recovered fractions, paired differences, each with a 95 % bootstrap interval.

Everything is resampled by the items' groups (documents), the same resamples for all arms. Masks are bool [n, H].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext.evaluation.bootstrap import group_weights, interval, weighted_mean
from megacontext.evaluation.measured import Measured
from megacontext.evaluation.scoring import FloatArray

BoolArray = npt.NDArray[np.bool_]
GATE_ALL, GATE_FAR_COPY = 0.05, 0.2
DISTANCES = ((1, 4), (5, 16), (17, 64))
Pairs = Sequence[tuple[str, str]]


class Figures:
    """Figures of one ``Measured``; names are those of its arms."""

    def __init__(self, measured: Measured, *, seed: int = 0) -> None:
        self.measured = measured
        items = measured.items
        self._weights = np.concatenate([np.ones((1, len(items))), group_weights(items.group, seed)])
        everything = np.ones((len(items), items.horizon), dtype=np.bool_)
        self.masks = {"all": everything, "far_copy": items.far_copy}

    def has(self, *names: str) -> bool:
        """Whether all these arms were measured."""
        return all(name in self.measured.nll for name in names)

    def arm(self, name: str) -> dict[str, Any]:
        """NLL, ΔNLL against ``full``, recovered fraction, slots; the same on far-copy tokens."""
        found = {**self._masked(name, self.masks["all"]), "slots": self.measured.slots[name]}
        if name in self.measured.forwards:
            found["token_forwards"] = self.measured.forwards[name]
        run = int(self._ran(name)[:, 0].sum())
        if run < len(self.measured.items):
            found["items"] = run
        return {**found, "far_copy": self._masked(name, self.masks["far_copy"])}

    def difference(self, a: str, b: str) -> dict[str, Any]:
        """NLL of ``a`` minus that of ``b``, on the items that both were run on."""
        values = self.measured.nll[a] - self.measured.nll[b]
        whole, copied = (self._mean(values, mask, a, b) for mask in self.masks.values())
        return {"diff": float(whole[0]), "ci": interval(whole[1:]), "far_copy": _with_ci("diff", copied)}

    def differences(self, pairs: Pairs) -> dict[str, Any]:
        """``"a-b"`` → difference, for those pairs that were measured."""
        return {f"{a}-{b}": self.difference(a, b) for a, b in pairs if self.has(a, b)}

    def ratio(self, over: tuple[str, str], under: tuple[str, str], *, mask: str = "all") -> FloatArray:
        """(NLL(a) − NLL(b)) / (NLL(c) − NLL(d)) on the items that all were run on: float64 [1 + resamples]."""
        nll, names = self.measured.nll, (*over, *under)
        top = self._mean(nll[over[0]] - nll[over[1]], self.masks[mask], *names)
        return _divided(top, self._mean(nll[under[0]] - nll[under[1]], self.masks[mask], *names))

    def gate(self) -> dict[str, Any]:
        """Whether the base uses far context on these items at all; without ``full`` nothing is judged."""
        if not self.has("full", "drop"):
            return {"judged": False}
        found = self.difference("drop", "full")
        mean, copied, ci = found["diff"], found["far_copy"]["diff"], found["far_copy"]["ci"]
        return {
            "judged": bool(mean >= GATE_ALL and copied >= GATE_FAR_COPY and ci[0] > 0),
            "drop_minus_full": mean,
            "drop_minus_full_ci": found["ci"],
            "drop_minus_full_far_copy": copied,
            "ci": ci,
        }

    def real(self) -> dict[str, Any] | None:
        """recovered(gist) − recovered(swapped): what is about this history, and not about having gists at all."""
        if not self.has("full", "drop", "gist", "swapped"):
            return None
        values = {mask: self.ratio(("swapped", "gist"), ("drop", "full"), mask=mask) for mask in self.masks}
        return {**_with_ci("recovered", values["all"]), "far_copy": _with_ci("recovered", values["far_copy"])}

    def by_distance(self, names: Sequence[str]) -> dict[str, Any]:
        """ΔNLL against ``full`` by the scored token's distance after the window's edge; ``"1-4"`` → arm → figures."""
        horizon = self.measured.items.horizon
        result = {}
        for low, high in DISTANCES:
            if low > horizon:
                break
            mask = np.zeros_like(self.masks["all"])
            mask[:, low - 1 : high] = True
            result[f"{low}-{min(high, horizon)}"] = {name: self._masked(name, mask) for name in names}
        return result

    def share_of_oracle(self, gist: str, policy: str, oracle: str) -> dict[str, Any]:
        """(NLL(gist) − NLL(policy)) / (NLL(gist) − NLL(oracle)); empty where nothing could be expanded."""
        values = self.ratio((gist, policy), (gist, oracle))
        if not np.isfinite(values[0]):
            return {}
        return {"share_of_oracle": float(values[0]), "share_of_oracle_ci": interval(values[1:])}

    def mean_difference(self, a: str, b: str) -> dict[str, Any]:
        """As ``difference``, under the key ``nats`` and without far-copy tokens."""
        return _with_ci("nats", self._mean(self.measured.nll[a] - self.measured.nll[b], self.masks["all"], a, b))

    def _masked(self, name: str, mask: BoolArray) -> dict[str, Any]:
        own = self.measured.nll[name]
        figures = _with_ci("nll", self._mean(own, mask, name))
        if not self.has("full", "drop"):
            return figures
        full, drop = self.measured.nll["full"], self.measured.nll["drop"]
        behind = self._mean(own - full, mask, name, "full")
        figures |= _with_ci("delta_nll", behind)
        figures |= _with_ci("delta_nll_share", _divided(behind, self._mean(full, mask, name, "full")))
        gained = self._mean(drop - own, mask, name, "full", "drop")
        return figures | _with_ci("recovered", _divided(gained, self._mean(drop - full, mask, name, "full", "drop")))

    def _ran(self, *names: str) -> BoolArray:
        """Where all these arms have figures."""
        result = np.ones_like(self.masks["all"])
        for name in names:
            result &= np.isfinite(self.measured.nll[name])
        return result

    def _mean(self, values: FloatArray, mask: BoolArray, *names: str) -> FloatArray:
        """The mean over masked tokens where ``names`` ran, as it is [0] and resampled [1:]."""
        return weighted_mean(values, mask & self._ran(*names), self._weights)


def report(measured: Measured, *, seed: int = 0, pairs: Pairs = ()) -> dict[str, Any]:
    """Gate, figures of every arm and paired differences, as plain data (the form of BENCHMARKS §4)."""
    figures = Figures(measured, seed=seed)
    found = {
        "gate": figures.gate(),
        "arms": {name: figures.arm(name) for name in measured.nll},
        "differences": figures.differences(pairs),
    }
    real = figures.real()
    return found if real is None else {**found, "real": real}


def renamed(measured: Measured, names: Mapping[str, str]) -> Measured:
    """Only the arms that are keys of ``names``, under the names that these map to."""
    present = {new: old for old, new in names.items() if old in measured.nll}
    return Measured(
        items=measured.items,
        nll={new: measured.nll[old] for new, old in present.items()},
        slots={new: measured.slots[old] for new, old in present.items()},
        forwards={new: measured.forwards[old] for new, old in present.items() if old in measured.forwards},
        bases={new: measured.bases[old] for new, old in present.items() if old in measured.bases},
    )


def _with_ci(name: str, values: FloatArray) -> dict[str, Any]:
    """A figure [0] and the interval of its resamples [1:]."""
    return {name: float(values[0]), f"{name}_ci" if name != "diff" else "ci": interval(values[1:])}


def _divided(top: FloatArray, bottom: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        result: FloatArray = top / bottom
    return result
