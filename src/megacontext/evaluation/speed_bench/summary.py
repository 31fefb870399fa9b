"""The figures of BENCHMARKS §4 from the records; of several that a figure could be read from, the worst."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALLOWED_NATS = 0.01
"""What an option of reuse may cost to count as one."""


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Worst of the bases, and ``by_base`` each alone. What was not measured is absent."""
    by_base = {name: _of(result, name) for name in result["bases"]}
    found: dict[str, Any] = {}
    for key, better in BETTER.items():
        values = [figures[key] for figures in by_base.values() if key in figures]
        if values:
            found[key] = better(values)
    roofline = [figures["roofline_share"] for figures in by_base.values()]
    # What the roofline is judged on is the larger base, which comes last.
    found["roofline_share"] = roofline[-1]
    return {**found, **_reuse(result), "by_base": by_base}


BETTER: dict[str, Any] = {
    "decode_ratio_longest_to_shortest": max,
    "memory_ratio_longest_to_shortest": max,
    "longest_history": min,
    "refocus_token_forwards_saving": min,
    "total_over_sliding_window": max,
    "ingest_over_prefill": min,
    "ttft_over_prefill": min,
    "overhead_share": max,
    "full_falls_behind_at": max,
}
"""Summary key → which of several values is the worst."""


def _of(result: Mapping[str, Any], base: str) -> dict[str, Any]:
    windows = [each for each in result["decode"] if each["base"] == base and each["arm"] == "megacontext"]
    shortest, longest = windows[0], windows[-1]
    found: dict[str, Any] = {
        "decode_ratio_longest_to_shortest": round(longest["ms_per_token"] / shortest["ms_per_token"], 4),
        "longest_history": longest["history"],
        "ingest_over_prefill": min(each["over_prefill"] for each in result["ingest"] if each["base"] == base),
        "roofline_share": next(each["share"] for each in result["roofline"] if each["base"] == base),
        "ttft_over_prefill": next(each["prefill_over_first_token"] for each in result["first_token"] if each["base"] == base),
    }
    if "peak_anonymous_mb" in shortest and "peak_anonymous_mb" in longest:
        ratio = longest["peak_anonymous_mb"] / shortest["peak_anonymous_mb"]
        found["memory_ratio_longest_to_shortest"] = round(ratio, 4)
    if (behind := _crossover(result, base)) is not None:
        found["full_falls_behind_at"] = behind
    return {**found, **_refocus(result, base)}


def _crossover(result: Mapping[str, Any], base: str) -> int | None:
    """The shortest history from which on reading everything takes longer a token than all of ours, recomputation included."""
    wholes = [each for each in result["decode"] if each["base"] == base and each["arm"] == "full"]
    ours = [each["all_in_ms_per_token"] for each in result["decode"] if each["base"] == base and each["arm"] == "megacontext"]
    slower = [each["ms_per_token"] > max(ours) for each in wholes]
    for at, each in enumerate(wholes):
        if all(slower[at:]):
            return int(each["history"])
    return None


def _refocus(result: Mapping[str, Any], base: str) -> dict[str, Any]:
    """Of the default, exact reuse, at the shortest interval."""
    exact = [each for each in result["refocus"] if each["base"] == base and each["reuse"] == "exact"]
    if not exact:
        return {}
    shortest = min(exact, key=lambda each: each["interval"])
    best = min(
        (each for each in result["refocus"] if each["base"] == base and each["interval"] == shortest["interval"]),
        key=lambda each: each["over_sliding_window"] if each["reuse"] in _allowed(result) else float("inf"),
    )
    return {
        "refocus_token_forwards_saving": shortest["token_forwards_saving"],
        "total_over_sliding_window": shortest["over_sliding_window"],
        "overhead_share": shortest["overhead_share"],
        "best_reuse": best["reuse"],
        "best_total_over_sliding_window": best["over_sliding_window"],
        "best_token_forwards_saving": best["token_forwards_saving"],
    }


def _allowed(result: Mapping[str, Any]) -> set[str]:
    """Ways of reuse that cost at most 0.01 nats at every interval; exact reuse always does."""
    costs: dict[str, float] = {}
    for each in result.get("reuse", ()):
        costs[each["option"]] = max(costs.get(each["option"], 0.0), each["nll_difference"])
    return {"exact", *(option for option, cost in costs.items() if cost <= ALLOWED_NATS)}


def _reuse(result: Mapping[str, Any]) -> dict[str, float]:
    """The dearest of the ways that are allowed."""
    costs = [each["nll_difference"] for each in result.get("reuse", ()) if each["option"] in _allowed(result) - {"exact"}]
    return {"reuse_nll_difference": round(max(costs), 5) if costs else 0.0} if "reuse" in result else {}
