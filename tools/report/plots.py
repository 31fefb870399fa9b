"""Curves of the docs as SVG: the same bytes for the same figures.

Light cards with a background of their own, so that they can be read on light and on dark pages. Colours are told apart by
people with colour-blindness (Okabe & Ito 2008, https://jfly.uni-koeln.de/color/) and lines are labelled directly.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.report.files import Result
from tools.report.scaling import TARGETS, Law, Size

BLUE, GREEN, RED, GREY, ORANGE, SKY = "#0072b2", "#00805e", "#b5440b", "#6b6b6b", "#a86b00", "#3b8fc4"
CYCLE = (BLUE, RED, GREEN, ORANGE, "#8a4f7d", GREY, SKY, "#222222")
BUDGET_COLOURS = {
    **{"megacontext": BLUE, "oracle": "#222222", "suffix": GREEN, "recency": GREY, "recency_sinks": SKY},
    **{"recent_expand": ORANGE, "random_expand": "#8a4f7d"},
}
WIDTH = 7.2  # inches at 72 units each
STYLE: Any = {
    "svg.hashsalt": "megacontext",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": "#555555",
    "ytick.color": "#333333",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "figure.facecolor": "#ffffff",
    "savefig.facecolor": "#ffffff",
    "lines.linewidth": 1.8,
}
Curve = tuple[str, Sequence[float], Sequence[float | None], str | None]
"""Name, x, y (a missing one leaves a gap), colour (None: the next of ``CYCLE``)."""
ARM_COLOURS = {
    **dict.fromkeys(("noise", "mean", "rarest", "swapped", "replayed_swapped"), RED),
    **dict.fromkeys(("recency", "recency_sinks", "suffix", "oracle", "answer_seeing"), GREY),
    "replayed": GREEN,
}


@contextmanager
def figure(height: float, panels: int = 1, *, left: float = 0.09, share: bool = False) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of ``panels`` axes side by side in the house style; ``height`` in inches, ``left`` margin as a share."""
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(WIDTH, height))
        axes = drawn.subplots(1, panels, squeeze=False, sharey=share)[0]
        drawn.subplots_adjust(left=left, right=0.97, bottom=0.55 / height, top=1 - 0.35 / height, wspace=0.28)
        yield drawn, list(axes)


def svg(drawn: Figure) -> str:
    """The figure as SVG without dates or random identifiers; to be called inside ``figure``."""
    out = io.StringIO()
    drawn.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def arms(result: Result, labels: Mapping[str, str]) -> str:
    """Recovered fraction of every arm, on all and on far-copy tokens, with intervals; ``drop`` and ``full`` are the ends."""
    names = [name for name in labels if "recovered" in result["arms"].get(name, {}) and name not in ("drop", "full")]
    wrapped = [textwrap.fill(labels[name], 32) for name in names]
    row = 0.38 if any("\n" in label for label in wrapped) else 0.26
    with figure(0.9 + row * len(names), 2, left=0.36, share=True) as (drawn, axes):
        for panel, (title, pick) in zip(axes, (("all scored tokens", False), ("far-copy tokens", True)), strict=True):
            for at, name in enumerate(names):
                arm = result["arms"][name]["far_copy"] if pick else result["arms"][name]
                if "recovered" not in arm:
                    continue
                low, high = arm.get("recovered_ci", (arm["recovered"],) * 2)
                colour = ARM_COLOURS.get(name, BLUE)
                panel.plot([low, high], [at, at], color=colour, linewidth=2.2, solid_capstyle="butt")
                panel.plot([arm["recovered"]], [at], "o", color=colour, markersize=5)
            for reference in (0, 1):
                panel.axvline(reference, color="#888888", linewidth=0.8, linestyle=":")
            panel.set_title(title)
            panel.set_xlabel("recovered (0 = drop, 1 = full)")
            panel.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(names)), wrapped)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        drawn.subplots_adjust(wspace=0.1)
        return svg(drawn)


def lines(curves: Sequence[Curve], *, x: str, y: str, zero: bool = False) -> str:
    """One panel of labelled curves; ``zero`` draws the line at 0 and keeps it in sight."""
    with figure(2.9, left=0.1) as (drawn, (panel,)):
        ends: list[tuple[float, float, str, str]] = []
        for number, (name, xs, ys, colour) in enumerate(curves):
            shade = colour or CYCLE[number % len(CYCLE)]
            values = [float("nan") if value is None else value for value in ys]
            panel.plot(xs, values, color=shade, marker="o", markersize=3)
            seen = [(at, value) for at, value in zip(xs, ys, strict=True) if value is not None]
            if seen:
                ends.append((seen[-1][0], seen[-1][1], name, shade))
        if zero:
            panel.axhline(0, color="#888888", linewidth=1.0)
        panel.set_xlim(left=0)
        panel.set_xlabel(x)
        panel.set_ylabel(y)
        drawn.subplots_adjust(right=0.74, top=0.96)
        _label_ends(panel, ends)
        return svg(drawn)


def scaling(sizes: Sequence[Size], laws: Mapping[str, Law | None]) -> str:
    """Figures against the parameters of the base: points, the fitted laws, and their intervals up to the first target."""
    shown = [(title, [name for name in names if any(name in size.figures for size in sizes)]) for title, names in PANELS]
    shown = [(title, names) for title, names in shown if names]
    with figure(2.9, len(shown), left=0.06) as (drawn, axes):
        for panel, (title, names) in zip(axes, shown, strict=True):
            seen = [value for name in names for value in _sized(panel, sizes, name, laws.get(name))]
            room = 0.35 * (max(seen) - min(seen)) or 0.1
            # An interval may leave the page by far: beyond the edge it says no more than "anything".
            panel.set_ylim(min(seen) - room, max(seen) + room)
            panel.set_xscale("log")
            panel.set_xlabel("parameters of the base")
            panel.set_title(title)
            panel.grid(which="minor", visible=False)
        drawn.subplots_adjust(wspace=0.3)
        return svg(drawn)


PANELS = (
    ("NLL, everything raw (nats)", ("full",)),
    ("drop − full (nats)", ("drop_minus_full",)),
    ("recovered (share)", ("recovered/gist", "recovered/swapped")),
)
SIZED = {"recovered/gist": (BLUE, "gists"), "recovered/swapped": (RED, "swapped")}


def _sized(panel: Axes, sizes: Sequence[Size], name: str, law: Law | None) -> list[float]:
    """Draw one figure over the sizes with its law; the values that have to be in sight."""
    colour, label = SIZED.get(name, (BLUE, ""))
    pairs = [(size.parameters, size.figures[name]) for size in sizes if name in size.figures]
    seen = [value for _, value in pairs]
    panel.plot([size for size, _ in pairs], seen, "o", color=colour, markersize=5)
    panel.annotate(label, pairs[-1], xytext=(6, -9), textcoords="offset points", color=colour)
    if law is not None:
        at = np.geomspace(min(size for size, _ in pairs), TARGETS[0], 60)
        middle = [law.at(float(x)) for x in at]
        seen += middle
        reach = 10 * (max(seen) - min(seen) + 1)
        ends = np.array([law.interval(float(x)) for x in at]).clip(min(seen) - reach, max(seen) + reach)
        panel.fill_between(at, ends[:, 0], ends[:, 1], color=colour, alpha=0.12, linewidth=0)
        panel.plot(at, middle, color=colour, linewidth=1.2, linestyle="--")
    return seen


def _label_ends(panel: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names beside the last points, moved apart where they would overlap; thin lines lead to those that moved."""
    ends = sorted(ends, key=lambda end: end[1])
    low, high = panel.get_ylim()
    places = _apart([value for _, value, _, _ in ends], least=0.078 * (high - low))
    edge = max((end[0] for end in ends), default=1.0)
    span = panel.get_xlim()[1] - panel.get_xlim()[0]
    for (x, value, name, colour), place in zip(ends, places, strict=True):
        panel.annotate(
            name,
            xy=(x, value),
            xytext=(edge + 0.05 * span, place),
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                **{"arrowstyle": "-", "color": colour, "linewidth": 0.7, "linestyle": ":"},
                **{"relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3},
            },
        )


def _apart(places: Sequence[float], *, least: float) -> list[float]:
    """The sorted places, each pair of neighbours at least that far apart and every cluster about where it was."""
    found = list(places)
    for _ in range(60 * len(found)):
        for at in range(len(found) - 1):
            short = least - (found[at + 1] - found[at])
            if short > 0:
                found[at] -= short / 2
                found[at + 1] += short / 2
    return found
