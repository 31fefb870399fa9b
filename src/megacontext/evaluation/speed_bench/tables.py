"""A speed result as rows of tables, for the terminal and for the docs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megacontext.engine.profile import PARTS

Rows = list[tuple[str, ...]]
DECODE = ("base", "arm", "history", "entries", "ms per token", "all in", "refocus ms", "peak MB")
REFOCUS = ("base", "every", "reuse", "expansions", "recomputed", "fewer forwards", "ms per token", "over sliding")
INGEST = ("base", "history", "tokens per s", "over prefill", "MB held")
AIMS: dict[str, tuple[str, float, str]] = {
    "decode_ratio_longest_to_shortest": ("decoding at the longest history against the shortest", 1.05, "≤"),
    "memory_ratio_longest_to_shortest": ("peak memory at the longest history against the shortest", 1.05, "≤"),
    "total_over_sliding_window": ("all in, recomputation included, against a sliding window, exact reuse", 1.3, "≤"),
    "best_total_over_sliding_window": ("the same with the best reuse that costs ≤ 0.01 nats", 1.6, "≤"),
    "refocus_token_forwards_saving": ("fewer token-forwards a refocus than a prefill, exact reuse", 3.0, "≥"),
    "overhead_share": ("focus, allocator, assembly and storage as a share of a decode step", 0.03, "≤"),
    "full_falls_behind_at": ("reading everything falls behind at a history of", 16384, "≤"),
    "ttft_over_prefill": ("prefilling the history against the first token of a memory of it", 10.0, "≥"),
    "ingest_over_prefill": ("ingest against prefilling the same tokens in 16k windows", 10.0, "≥"),
    "roofline_share": ("share of the roofline that a decode step reaches", 0.5, "≥"),
}
"""Summary key → what it says, the aim, and on which side of it to be."""
SMALL: dict[str, float] = {"ingest_over_prefill": 3.0}
"""Aims that are others on the bundled base."""
JUDGED_ON_RANDOM = {"overhead_share", "roofline_share"}


def aim_rows(result: Mapping[str, Any]) -> Rows:
    """One row for each aim and base: what, the base, the aim, what was measured, and whether that is within it."""
    rows: Rows = []
    for key, (label, aim, sign) in AIMS.items():
        for base, figures in result["summary"]["by_base"].items():
            if key not in figures:
                continue
            bound = SMALL.get(key, aim) if base == "bundle" else aim
            value = figures[key]
            met = value <= bound if sign == "≤" else value >= bound
            verdict = "met" if met else "**missed**"
            if key in JUDGED_ON_RANDOM and base == "bundle":
                verdict = "not an aim"
            rows.append((label, base, f"{sign} {bound:,g}", f"{value:,.0f}" if value >= 1000 else f"{value:.3g}", verdict))
    return rows


def decode_rows(result: Mapping[str, Any]) -> Rows:
    """One row for each history and arm."""
    return [
        (
            each["base"],
            each["arm"],
            f"{each['history']:,}" if "history" in each else "any",
            f"{each['slots']:,}",
            _ms(each["ms_per_token"]),
            _ms(each["all_in_ms_per_token"]) if "all_in_ms_per_token" in each else "–",
            _ms(each["refocus_ms"]) if "refocus_ms" in each else "–",
            f"{each['peak_anonymous_mb']:,.0f}" if "peak_anonymous_mb" in each else "–",
        )
        for each in result["decode"]
    ]


def refocus_rows(result: Mapping[str, Any]) -> Rows:
    """One row for each base, interval and way of reuse."""
    return [
        (
            each["base"],
            str(each["interval"]),
            each["reuse"],
            f"{each['expansions_per_refocus']:.1f}",
            f"{each['recomputed_per_refocus']:,.0f}",
            f"{each['token_forwards_saving']:.2f}×",
            _ms(each["all_in_ms_per_token"]),
            f"{each['over_sliding_window']:.2f}×",
        )
        for each in result["refocus"]
    ]


def profile_rows(result: Mapping[str, Any]) -> Rows:
    """Milliseconds per token by part, of exact reuse: one row a base and interval."""
    return [
        (each["base"], str(each["interval"]), *(_ms(each["profile_ms_per_token"][part]) for part in PARTS))
        for each in result["refocus"]
        if each["reuse"] == "exact"
    ]


def ingest_rows(result: Mapping[str, Any]) -> Rows:
    """One row for each stretch of ingest."""
    return [
        (
            each["base"],
            f"{each['history']:,}",
            f"{each['tokens_per_s']:,.0f}",
            f"{each['over_prefill']:.1f}×",
            f"{each['anonymous_mb']:,.0f}" if "anonymous_mb" in each else "–",
        )
        for each in result["ingest"]
    ]


def aim_lines(result: Mapping[str, Any]) -> list[str]:
    """The aims in words."""
    return [
        f"{label} ({base}): {found} (aim {aim}): {verdict.strip('*')}" for label, base, aim, found, verdict in aim_rows(result)
    ]


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
