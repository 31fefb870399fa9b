"""A storage result as rows of a table, for the terminal and for the docs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = ("", "memory", "99 %", "computing", "plain file", "99 %", "ratio")
"""Medians, 99th percentiles, and the median of what was computing, neither waiting for the disk nor for other processes."""
AIMS = {
    "scattered_warm_ratio": ("256 scattered rows, warm, against the plain file", 1.5, "×"),
    "contiguous_warm_ratio": ("8,192 rows in a piece, warm, against the plain file", 1.5, "×"),
    "durable_append_ratio": ("durable append against the plain file", 2.0, "×"),
    "open_ms": ("opening", 10.0, " ms"),
    "size_ratio": ("bytes on disk against raw bytes", 1.01, "×"),
    "branch_ms": ("creating a branch", 5.0, " ms"),
}
"""Summary key → what it says, the most that was aimed at, and its unit."""


def table_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for each record that was timed."""
    return [_row(record) for record in result["records"] if record["what"] != "size"]


def summary_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """One row for each figure of the summary: what, the aim, what was measured, and whether that is within it."""
    return [
        (
            label,
            f"≤ {aim:g}{unit}",
            f"{result['summary'][key]:.2f}{unit}",
            "met" if result["summary"][key] <= aim else "**missed**",
        )
        for key, (label, aim, unit) in AIMS.items()
        if key in result["summary"]
    ]


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """The summary in words."""
    return [f"{label}: {found} (aim {aim}): {verdict.strip('*')}" for label, aim, found, verdict in summary_rows(result)]


def _row(record: Mapping[str, Any]) -> tuple[str, ...]:
    memory, plain = record["memory"], record.get("plain", {})
    ratio = f"{record['ratio']:.2f}" if "ratio" in record else "–"
    if "mb_per_s" in memory:
        return _label(record), f"{memory['mb_per_s']:.0f} MB/s", "–", "–", f"{plain['mb_per_s']:.0f} MB/s", "–", ratio
    return _label(record), *_times(memory), _ms(memory["computing_p50_ms"]), *_times(plain), ratio


def _times(figures: Mapping[str, Any]) -> tuple[str, str]:
    if not figures:
        return "–", "–"
    return _ms(figures["p50_ms"]), _ms(figures["p99_ms"])


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _label(record: Mapping[str, Any]) -> str:
    what = str(record["what"])
    if "state" in record:
        return f"{what} of {record['rows']:,} {record['column']}, {record['state']}"
    if what == "diff":
        return f"diff: {record['changed']:,} of {record['documents']:,} documents changed"
    if what == "commit of one document in a hundred":
        return f"commit of {record['documents']:,} superseded documents"
    unit = "block" if record["blocks"] == 1 else "blocks"
    joint = {"durable append": "of", "branch": "at", "open": "at", "supersede": "a document of"}.get(what, "of")
    return f"{what} {joint} {record['blocks']:,} {unit}"
