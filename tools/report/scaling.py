"""How figures change with the size of the base, and what a straight line in its logarithm says about larger ones.

Two laws, both with two coefficients, fitted by ordinary least squares (prediction intervals: Draper & Smith, "Applied
Regression Analysis", ch. 1.4): a power law for the loss, ``log y = a + b log N`` (after Kaplan et al.,
https://arxiv.org/abs/2001.08361, without an irreducible loss, which three points cannot tell), and ``y = a + b log N`` for
what can be zero or below. N: parameters of the base, embeddings included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from megacontext.errors import DatasetError
from tools.report.files import Result, chosen_figures

FloatArray = npt.NDArray[np.float64]
GROUP = "scaling"
LEAST_SIZES = 3
LOG2 = math.log(2)
TARGETS = (1e9, 3e9, 8e9)
FIGURES = {
    "full": "NLL, everything raw",
    "drop_minus_full": "gate: drop − full",
    "drop_minus_full_far_copy": "gate on far-copy tokens",
    "recovered/gist": "recovered, gists",
    "recovered/swapped": "recovered, swapped",
    "real": "real: gists − swapped",
}
"""What is followed over sizes, and how it is called."""
POWER = frozenset({"full"})
"""The figures that follow a power law; the others are straight lines in the logarithm."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """One base and what GistNets for it reached (mean over ``gist_runs`` of them), on validation items.

    ``arm``: ``plain`` or ``native``. ``tokens`` that the base read in all its training, where known. ``figures`` by the names
    of ``FIGURES``, in nats per token or as shares; those that were not measured are absent.
    """

    arm: str
    width: int
    parameters: int
    tokens: int | None
    gist_runs: int
    figures: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Law:
    """``y = a + b·ln N`` or, for a ``power`` law, ``ln y = a + b·ln N``; ``x`` float64 [n] are the fitted ln N.

    ``spread``: standard deviation of the residuals with n − 2 degrees of freedom, on the fitted scale.
    """

    a: float
    b: float
    power: bool
    x: FloatArray
    spread: float

    def at(self, parameters: float) -> float:
        """The figure at that size."""
        return self._back(self.a + self.b * math.log(parameters))

    def interval(self, parameters: float) -> tuple[float, float]:
        """The 95 % prediction interval of one further measurement at that size, if the law holds that far."""
        x = math.log(parameters)
        n = len(self.x)
        centre = float(self.x.mean())
        leverage = 1 + 1 / n + (x - centre) ** 2 / float(((self.x - centre) ** 2).sum())
        half = student(n - 2) * self.spread * math.sqrt(leverage)
        middle = self.a + self.b * x
        return self._back(middle - half), self._back(middle + half)

    def _back(self, value: float) -> float:
        # A power law over three points can have an interval of hundreds of orders of magnitude.
        return math.exp(min(value, 700.0)) if self.power else value


def sizes(runs: Iterable[Result]) -> list[Size]:
    """The bases among ``runs`` of the group ``scaling``, with the figures of the GistNets trained for them.

    Runs belong together by their folders: a GistNet's ``base`` lies in the output of the run that made it, a native run's
    ``init`` in that of its plain base. Sorted by arm, then parameters.
    """
    group = [run for run in runs if run["group"] == GROUP]
    bases = [run for run in group if run["trains"] in ("base", "native")]
    gists = [run for run in group if run["trains"] == "gist"]
    found = []
    for base in bases:
        own = [gist for gist in gists if _maker(gist["config"]["base"], bases) is base]
        found.append(_size(base, own, bases))
    return sorted(found, key=lambda size: (size.arm != "plain", size.arm, size.parameters))


def by_arm(points: Iterable[Size]) -> dict[str, list[Size]]:
    """The sizes of each arm: laws are never fitted across arms."""
    found: dict[str, list[Size]] = {}
    for size in points:
        found.setdefault(size.arm, []).append(size)
    return found


def fit(points: Sequence[Size], figure: str) -> Law | None:
    """The law of one figure over ``points``; None with fewer than three sizes, or where no such law is possible."""
    pairs = [(size.parameters, size.figures[figure]) for size in points if figure in size.figures]
    if len({parameters for parameters, _ in pairs}) < LEAST_SIZES:
        return None
    return _line(pairs, power=figure in POWER)


def largest_from_others(points: Sequence[Size], figure: str) -> tuple[float, float] | None:
    """What the law of all smaller sizes says about the largest one, and what was measured there: a test of the law."""
    pairs = sorted((size.parameters, size.figures[figure]) for size in points if figure in size.figures)
    largest = pairs[-1][0] if pairs else 0
    smaller = [pair for pair in pairs if pair[0] < largest]
    if len({parameters for parameters, _ in smaller}) < LEAST_SIZES - 1:
        return None
    law = _line(smaller, power=figure in POWER)
    measured = float(np.mean([value for parameters, value in pairs if parameters == largest]))
    return None if law is None else (law.at(largest), measured)


@cache
def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t distribution; ``freedom`` ≥ 1.

    With t = √ν tan θ the density becomes cos^(ν−1) θ on (−π/2, π/2), which is integrated numerically.
    """
    angle = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(0.95, below / below[-1], angle)))


def _line(pairs: Sequence[tuple[int, float]], *, power: bool) -> Law | None:
    x = np.log(np.array([parameters for parameters, _ in pairs], dtype=np.float64))
    y = np.array([value for _, value in pairs], dtype=np.float64)
    if power and (y <= 0).any():
        return None
    y = np.log(y) if power else y
    centred = x - x.mean()
    b = float((centred * (y - y.mean())).sum() / (centred**2).sum())
    a = float(y.mean() - b * x.mean())
    freedom = max(1, len(x) - 2)
    spread = math.sqrt(float(((y - a - b * x) ** 2).sum()) / freedom)
    return Law(a=a, b=b, power=power, x=x, spread=spread)


def _size(base: Result, gists: Sequence[Result], bases: Sequence[Result]) -> Size:
    root = _root(base, bases)
    legs = [root] if base is root else [root, base]
    # Without the plain base that a native one began from, its tokens are not all known.
    from_scratch = root["trains"] == "base" or root["config"].get("init") is None
    known = from_scratch and all("tokens" in leg for leg in legs)
    if "base" not in base["parameters"]:
        raise DatasetError(f"the run {base['name']} had exported no base when it was summarised: summarise it again")
    measured = [chosen_figures(gist) for gist in gists] or [chosen_figures(base)]
    names = [name for name in FIGURES if all(name in figures for figures in measured)]
    return Size(
        arm="plain" if base["trains"] == "base" else "native",
        width=root["config"]["shape"]["width"] if "shape" in root["config"] else 0,
        parameters=base["parameters"]["base"],
        tokens=sum(leg["tokens"] for leg in legs) if known else None,
        gist_runs=len(gists),
        figures={name: float(np.mean([figures[name] for figures in measured])) for name in names},
    )


def _root(base: Result, bases: Sequence[Result]) -> Result:
    """The plain run that a native one began from, if it is among ``bases``; else the run itself."""
    if base["trains"] != "native" or base["config"].get("init") is None:
        return base  # from scratch
    return _maker(base["config"]["init"], bases) or base


def _maker(folder: str, bases: Sequence[Result]) -> Result | None:
    """The run in whose output ``folder`` lies; the innermost if several do."""
    parents = {str(parent) for parent in (PurePosixPath(folder), *PurePosixPath(folder).parents)}
    makers = [run for run in bases if str(PurePosixPath(run["config"]["output"])) in parents]
    return max(makers, key=lambda run: len(run["config"]["output"]), default=None)
