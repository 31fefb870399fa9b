"""Tables about focus over long histories: what an index costs, and what policies make of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.report.markdown import table, with_interval

Result = Mapping[str, Any]
_ARMS = {
    "recent": "newest raw tokens, no gists",
    "nothing": "gists, nothing opened",
    "recency": "newest blocks opened",
    "random": "random blocks opened",
    "retrieval": "BM25",
    "suffix": "suffix",
    "lens": "lens",
    "hybrid": "**hybrid**",
    "hybrid_no_suffixes": "hybrid without suffixes",
    "hybrid_no_skips": "hybrid, only matches that end at the cursor",
    "hybrid_no_words": "hybrid without BM25",
    "hybrid_and_lens": "hybrid with the LensNet's judgement added",
    "hybrid_and_gists": "hybrid with gist search as well",
}


def suffix_table(result: Result) -> str:
    """One row for each length of history."""
    rows = []
    for record in result["records"]:
        find, scan, unmerged = (record.get(name) for name in ("find_us", "scan_us", "unmerged_us"))
        rows.append(
            (
                f"{record['tokens']:,}",
                str(record["runs"]),
                f"{record['bytes_per_token']:.1f}" if record["runs"] else "–",
                f"{record['build_tokens_per_second'] / 1e6:.1f}" if record["runs"] else "–",
                f"{find['p50']:,.0f} / {find['p99']:,.0f}",
                f"{unmerged['p50']:,.0f}" if unmerged else "–",
                f"{scan['p50']:,.0f}",
            )
        )
    names = ("tokens", "runs", "bytes a token", "made, M tokens/s", "search, µs (p50 / p99)", "unmerged, µs", "every token, µs")
    return table(names, rows)


def focus_lengths(result: Result) -> str:
    """A table for each length of history."""
    parts = []
    for length in result["lengths"]:
        of = f"**{length['tokens']:,} tokens of history**, {length['items']} items of {length['files']} files:"
        parts += [of, focus_table(length)]
    return "\n\n".join(parts)


def focus_table(length: Result) -> str:
    """One row for each arm over histories of one length."""
    rows = [
        (
            _ARMS.get(name, name),
            f"{arm['nll']:.3f}",
            "–" if name == length["reference"] else with_interval(arm, "reference_minus_arm", "+.3f"),
            f"{arm['deep_blocks']:.1f}" if arm["deep_blocks"] is not None else "–",
            f"{arm['refocus_ms']:.0f}" if arm["refocus_ms"] is not None else "–",
        )
        for name, arm in sorted(length["arms"].items(), key=lambda each: each[1]["nll"])
    ]
    return table(("arm", "NLL", "hybrid minus arm", "raw blocks of the history", "ms a refocus"), rows)
