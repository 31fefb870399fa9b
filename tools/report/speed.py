"""Tables and curves of a speed result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter

from megacontext.engine.profile import PARTS
from megacontext.evaluation.speed_bench import tables
from tools.report import plots
from tools.report.markdown import table

Result = Mapping[str, Any]
BASES = {"bundle": "the base that ships", "random": "the random Llama"}
ARMS = {
    "megacontext": ("MegaContext, all in", plots.BLUE),
    "full": ("reading everything", plots.RED),
    "sliding": ("sliding window", plots.GREY),
}


def aims(result: Result) -> str:
    """What was aimed at, what was measured, and whether that is within it."""
    return table(("", "base", "aim", "measured", ""), tables.aim_rows(result))


def decode(result: Result) -> str:
    """Every history and arm."""
    return table(tables.DECODE, tables.decode_rows(result))


def refocus(result: Result) -> str:
    """Every base, interval and way of reuse."""
    return table(tables.REFOCUS, tables.refocus_rows(result))


def profile(result: Result) -> str:
    """Where the time of a token goes, in milliseconds."""
    return table(("base", "every", *PARTS), tables.profile_rows(result))


def ingest(result: Result) -> str:
    """Every stretch of ingest."""
    return table(tables.INGEST, tables.ingest_rows(result))


def first_token(result: Result) -> str:
    """The first token of a memory beside a prefill of what is in it."""
    rows = [
        (
            each["base"],
            f"{each['history']:,}",
            f"{1e3 * each['seconds']:,.0f} ms",
            f"{each['prefill_seconds']:,.0f} s",
            f"{each['prefill_over_first_token']:,.0f}×",
        )
        for each in result["first_token"]
    ]
    return table(("base", "history", "first token", "prefill", ""), rows)


def roofline(result: Result) -> str:
    """What a decode step has to move and compute, what the machine does at best, and the share that is reached."""
    rows = [
        (
            each["base"],
            f"{each['bytes'] / 1e6:,.0f} MB",
            f"{each['operations'] / 1e6:,.0f} M",
            f"{each['copy_gb_per_s']:.1f} / {each['read_gb_per_s']:.1f} GB/s",
            f"{each['gflop_per_s']:.0f} GFLOP/s",
            f"{each['least_ms']:.2f} ms",
            f"{each['decode_ms']:.2f} ms",
            f"{each['share']:.0%}",
            f"{each['share_of_plain']:.0%}",
        )
        for each in result["roofline"]
    ]
    columns = (
        "base",
        "bytes",
        "operations",
        "copy / read",
        "matrix rate",
        "at best",
        "decode step",
        "share",
        "share, plain window",
    )
    return table(columns, rows)


def reuse(result: Result) -> str:
    """What each way of reuse costs in nats."""
    rows = [
        (
            str(each["interval"]),
            each["option"],
            f"{each['nll_difference']:+.4f} [{each['nll_difference_ci'][0]:+.4f}, {each['nll_difference_ci'][1]:+.4f}]",
            f"{each['token_forwards_saving']:.2f}×",
        )
        for each in result["reuse"]
    ]
    return table(("every", "reuse", "nats against exact [95 %]", "fewer token-forwards a refocus"), rows)


def drawn(result: Result) -> str:
    """Milliseconds per token over the history, a panel a base, both axes by powers of ten."""
    bases = [base for base in BASES if base in result["bases"]]
    with plots.figure(3.1, len(bases), left=0.08) as (figure, axes):
        for panel, base in zip(axes, bases, strict=True):
            for arm, (label, colour) in ARMS.items():
                xs, ys = _points(result, base, arm)
                if not xs:
                    continue
                panel.plot(xs, ys, color=colour, marker="o", markersize=3, linestyle="--" if arm == "sliding" else "-")
                above = arm == "full"
                panel.annotate(
                    label,
                    (xs[-1], ys[-1]),
                    xytext=(0, 7 if above else -12),
                    textcoords="offset points",
                    color=colour,
                    ha="right",
                )
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_ylim(bottom=panel.get_ylim()[0] / 1.6, top=panel.get_ylim()[1] * 1.6)
            for axis in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
                axis(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.set_title(BASES[base])
            panel.set_xlabel("tokens of history")
            panel.grid(which="minor", visible=False)
        axes[0].set_ylabel("ms per token")
        return plots.svg(figure)


def _points(result: Result, base: str, arm: str) -> tuple[Sequence[float], Sequence[float]]:
    found = [each for each in result["decode"] if each["base"] == base and each["arm"] == arm]
    if arm == "sliding":
        # The same whatever lies before it.
        histories = [each["history"] for each in result["decode"] if each["base"] == base and "history" in each]
        return [min(histories), max(histories)], [found[0]["ms_per_token"]] * 2
    return [each["history"] for each in found], [each.get("all_in_ms_per_token", each["ms_per_token"]) for each in found]


def load(result: Result) -> str:
    """How busy the machine was."""
    before, after = result["environment"].get("load", [None, None])
    if before is None or after is None:
        return "How busy the machine was is not known."
    quick = " A quick run: its figures say little." if result["quick"] else ""
    if max(before, after) <= result["environment"]["threads"] + 0.5:
        return f"Nothing else of weight ran (load {before:.1f} before, {after:.1f} after).{quick}"
    said = f"**The machine was busy** (load {before:.1f} before, {after:.1f} after)"
    return f"{said}: ratios hold roughly, milliseconds do not.{quick}"
