"""What became of documents, in words: for log, show, diff, merge and revert."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from megacontext.cli import output

if TYPE_CHECKING:
    from megacontext.storage import Change

_MARKS = {"added": "+", "changed": "~", "removed": "-"}


def change_facts(changes: Iterable[Change]) -> dict[str, list[str]]:
    """For programs: sources by what became of them."""
    facts: dict[str, list[str]] = {kind: [] for kind in _MARKS}
    for change in changes:
        kind = "added" if change.live_before is None else "removed" if change.live_after is None else "changed"
        facts[kind].append(change.source)
    return facts


def change_lines(facts: dict[str, Any], most: int | None = None) -> list[str]:
    """For people: a line for each source, at most `most` (None: all)."""
    named = [(mark, source) for kind, mark in _MARKS.items() for source in facts[kind]]
    named.sort(key=lambda each: each[1])
    lines = [f"{mark} {source}" for mark, source in named[:most]]
    if most is not None and len(named) > most > 0:
        lines.append(f"… and {len(named) - most:,} more")
    return lines


def counted(facts: dict[str, Any]) -> str:
    """How many of each kind there are, those that there are."""
    parts = [f"{len(facts[kind]):,} {kind}" for kind in _MARKS if facts[kind]]
    return ", ".join(parts) or "no documents changed"


def print_lines(lines: Sequence[str]) -> None:
    """One below the other, indented."""
    for line in lines:
        output.line(f"    {line}")
