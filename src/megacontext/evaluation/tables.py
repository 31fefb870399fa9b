"""Tables for people from result files: never typed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABELS = {
    "drop": "drop: the tail alone (floor)",
    "recency_28": "recency: 28 raw tokens",
    "recency_224": "recency: 224 raw tokens",
    "recency_sinks_224": "recency with 4 sinks",
    "noise": "noise as gists (control)",
    "mean": "mean-pooled gists (control)",
    "swapped": "swapped gists (control)",
    "gist": "gists, nothing expanded",
    "random_expand": "gists, random expanded",
    "recent_expand": "gists, newest expanded",
    "megacontext": "MegaContext (LensNet)",
    "full": "full: all raw (ceiling)",
}
"""What each arm shows the base beside the tail, in the order of tables."""


def quality_rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row an arm: label, slots, NLL, recovered with its interval; NLL and recovered on far-copy tokens."""
    rows: list[tuple[str, ...]] = []
    for name, label in LABELS.items():
        arm = figures["arms"].get(name)
        if arm is None:
            continue
        copied = arm["far_copy"]
        recovered = f"{arm['recovered']:.2f} [{_interval(arm['recovered_ci'], '.2f')}]" if "recovered" in arm else "–"
        copy_recovered = f"{copied['recovered']:.2f}" if "recovered" in copied else "–"
        rows.append((label, f"{arm['slots']:.0f}", f"{arm['nll']:.3f}", recovered, f"{copied['nll']:.3f}", copy_recovered))
    return rows


COLUMNS = ("beside the tail", "slots", "NLL", "recovered [95 %]", "far-copy", "recovered")


def quality_markdown(result: Mapping[str, Any]) -> str:
    """The table, the gate and the paired differences of a quality result as Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---:|---:|---:|---:|---:|"]
    lines += ["| " + " | ".join(row) + " |" for row in quality_rows(result)]
    lines += ["", gate_sentence(result["gate"]), "", "| paired difference | nats [95 %] | |", "|---|---:|---|"]
    lines += [f"| {pair} | {text} | {verdict} |" for pair, text, verdict in difference_rows(result["differences"])]
    return "\n".join(lines) + "\n"


def difference_rows(differences: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Pair, difference with interval, and what the interval allows to say."""
    rows = []
    for pair, value in differences.items():
        low, high = value["ci"]
        verdict = "lower" if high < 0 else "higher" if low > 0 else "no clear difference"
        rows.append((pair.replace("-", " − "), f"{value['diff']:+.3f} [{_interval(value['ci'], '+.3f')}]", verdict))
    return rows


def gate_sentence(gate: Mapping[str, Any]) -> str:
    """Whether the base uses far context on these items at all."""
    if "drop_minus_full" not in gate:
        return "Gate: not judged, since the base cannot read the whole context raw."
    verdict = "judged" if gate["judged"] else "NOT judged: this base does not use far context enough on these items"
    return (
        f"Gate: drop − full = {gate['drop_minus_full']:.3f} nats [{_interval(gate['drop_minus_full_ci'], '.3f')}], "
        f"{gate['drop_minus_full_far_copy']:.3f} [{_interval(gate['ci'], '.3f')}] on far-copy tokens ({verdict})."
    )


def _interval(ends: tuple[float, float], form: str) -> str:
    return f"{ends[0]:{form}}, {ends[1]:{form}}"
