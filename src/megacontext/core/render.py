"""The window as text: a level-of-detail strip for terminals, and edits in words."""

from __future__ import annotations

import numpy as np

from megacontext.core.allocator.scores import FocusScores
from megacontext.core.edits import Edit, Expand
from megacontext.core.node import BLOCK, node_tokens
from megacontext.core.working_context import WorkingContext

# Shades from raw to the coarsest (levels from 4 on share one), then the unfinished block.
_UNICODE = "█▓▒░·▌"
_ASCII = "#=-:.|"
_DEEPEST = 4
_OPEN = 5

# A raw block is drawn four times as wide as a gist: in truth it costs 32 times as much, and then
# nothing but raw blocks would be seen.
_RAW_WIDTH = 4.0

_MARK = 0.05  # scores closer to zero than this get no mark


def strip(
    window: WorkingContext,
    width: int = 80,
    scores: FocusScores | None = None,
    *,
    ascii_only: bool = False,
) -> str:
    """The window from its oldest entry to the cursor, one character per slice.

    Lines: the shades, then marks for the strongest score of each slice if scores are given (up to
    open, down to close), then a scale of token positions and the cost.

    Args:
        window: what to draw.
        width: columns, at least 20.
        scores: a policy's opinion on this window.
        ascii_only: no character outside of ASCII, for terminals that cannot.
    """
    width = max(width, 20)
    shades = _ASCII if ascii_only else _UNICODE
    level = np.minimum(window.lod.astype(np.int64), _DEEPEST)
    weight = np.where(window.lod == 0, _RAW_WIDTH, 1.0)
    if window.timeline.open_tokens:
        level, weight = np.append(level, _OPEN), np.append(weight, 1.0)
    lines = []
    if level.size:
        edges = np.cumsum(weight) / weight.sum() * width
        at = np.minimum(np.searchsorted(edges, np.arange(width) + 0.5), level.size - 1)
        lines.append("".join(shades[i] for i in level[at].tolist()))
        if scores is not None:
            scores.check(window)
            lines.append(_marks(scores.entries.astype(np.float64), edges, width, ascii_only))
    lines.append(_scale(window, width))
    return "\n".join(lines)


def legend(*, ascii_only: bool = False) -> str:
    """One line that explains the strip's shades."""
    shades = _ASCII if ascii_only else _UNICODE
    spans = [f"LOD{lod} ({BLOCK**lod:,} tokens)" for lod in range(1, _DEEPEST)]
    names = ["raw", *spans, f"LOD{_DEEPEST} and up", "unfinished block"]
    return "  ".join(f"{shade} {name}" for shade, name in zip(shades, names, strict=True))


def summary(window: WorkingContext) -> str:
    """One line of numbers: entries by level, cost, and the tokens that they stand for."""
    lods, counts = np.unique(window.lod, return_counts=True)
    names = ["raw" if lod == 0 else f"LOD{lod}" for lod in lods.tolist()]
    parts = [f"{count} {name}" for name, count in zip(names, counts.tolist(), strict=True)]
    if window.timeline.open_tokens:
        parts.append(f"{window.timeline.open_tokens} open tokens")
    entries = ", ".join(parts) or "empty"
    return f"{entries}; cost {window.cost} of {window.budget} for {window.timeline.tokens:,} tokens"


def describe(edit: Edit) -> str:
    """An edit in words, with the tokens that it concerns."""
    start, stop = node_tokens(edit.lod, edit.index)
    if edit.lod < 1:  # not legal, but a refused wish has to be named too
        return f"expand raw block #{edit.index} (tokens {start:,}..{stop - 1:,})"
    below = "its raw block" if edit.lod == 1 else f"LOD{edit.lod - 1} gists"
    span = f"tokens {start:,}..{stop - 1:,}"
    if isinstance(edit, Expand):
        return f"expand LOD{edit.lod} #{edit.index} ({span}) into {below}"
    return f"collapse {below} into LOD{edit.lod} #{edit.index} ({span})"


def _marks(scores: np.ndarray, edges: np.ndarray, width: int, ascii_only: bool) -> str:
    up, down = ("^", "v") if ascii_only else ("▲", "▼")
    strongest = np.zeros(width)
    first = np.concatenate([[0.0], edges])[: scores.size]
    column = np.minimum(((first + edges[: scores.size]) / 2).astype(np.int64), width - 1)
    order = np.argsort(np.abs(scores), kind="stable")  # the strongest is written last
    strongest[column[order]] = scores[order]
    return "".join(up if s > _MARK else down if s < -_MARK else " " for s in strongest.tolist())


def _scale(window: WorkingContext, width: int) -> str:
    left, right = "0", f"{window.timeline.tokens:,}"
    middle = f" cost {window.cost}/{window.budget} "
    space = width - len(left) - len(right)
    return left + (middle.center(space) if space >= len(middle) else " ") + right
