"""Small pieces of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are figures."""
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def figure_text(value: float | None, form: str) -> str:
    """A figure in that format; a dash for one that was not measured."""
    return "–" if value is None else f"{value:{form}}"


def with_interval(figures: Mapping[str, Any], name: str, form: str, *, ci: str | None = None) -> str:
    """``name`` with its interval (under ``ci``, or ``name_ci``) where that is there."""
    ends = figures.get(ci or f"{name}_ci")
    text = f"{figures[name]:{form}}"
    return text if ends is None else f"{text} [{ends[0]:{form}}, {ends[1]:{form}}]"
