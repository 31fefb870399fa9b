"""A recall result as rows of a table, for the terminal and for the docs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RAW_COLUMNS = ("task", "cases", "read raw [95 %]", "newest tokens alone", "")


def raw_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row a task: what the base does when it reads everything, without memory, and whether that is enough to judge."""
    return [
        (
            found["task"].replace("_", " "),
            f"{found['cases']}",
            _exact(found),
            f"{found['none_exact']:.0%}",
            "judged" if found["judged"] else "not judged",
        )
        for found in result["raw"]
    ]


def memory_table(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows: exact match through the memory by task, policy and window, a column for every length of history."""
    lengths = sorted({record["history"] for record in result["tasks"]})
    cells: dict[tuple[str, str, int], dict[int, str]] = {}
    for record in result["tasks"]:
        at = (record["task"], record["arm"], record["window"])
        cells.setdefault(at, {})[record["history"]] = f"{_exact(record)} ({record['rank']:.1f})"
    rows = [
        (task.replace("_", " "), policy, f"{window:,}", *(own.get(length, "") for length in lengths))
        for (task, policy, window), own in cells.items()
    ]
    return ("task", "focus", "window", *(f"{length:,} tokens" for length in lengths)), rows


def _exact(found: Mapping[str, Any]) -> str:
    low, high = found["exact_ci"]
    return f"{found['exact']:.0%} [{low:.0%}, {high:.0%}]"
