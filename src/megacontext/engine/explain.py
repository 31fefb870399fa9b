"""Why the window is what it is: every entry with its span, source, score and the allocator's reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext.core import Collapse, Decision, WorkingContext, describe
from megacontext.engine.focus import Refocus
from megacontext.engine.kept import Kept, Node
from megacontext.storage import Snapshot

IntArray = NDArray[np.int64]
Ordinals = NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class EntryExplanation:
    """One entry. ``start``/``stop`` in tokens; ``line`` where its source's text begins to be covered (-1: unknown); ``kept``
    are the tokens that a key/value gist keeps before all others."""

    position: int
    lod: int
    index: int
    start: int
    stop: int
    cost: int
    score: float | None
    source: str
    line: int
    sources: int
    why: str
    kept: tuple[Kept, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "kept": [each.to_json() for each in self.kept]}


@dataclass(frozen=True, kw_only=True)
class EditExplanation:
    """One edit that the last refocus considered."""

    edit: str
    score: float
    cost: int
    chosen: bool
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def explain_edits(refocus: Refocus, limit: int | None = None) -> list[EditExplanation]:
    """Chosen edits in order, then the strongest refused ones."""
    return [
        EditExplanation(edit=describe(d.edit), score=d.score, cost=d.cost, chosen=d.chosen, reason=d.reason)
        for d in refocus.plan.decisions[:limit]
    ]


def explain_entries(
    window: WorkingContext, snapshot: Snapshot, refocus: Refocus | None, kept: Mapping[Node, Sequence[Kept]]
) -> list[EntryExplanation]:
    """One explanation an entry, in order. Scores and reasons are those of the last refocus; ``kept`` is by node."""
    scores, reasons = _last_words(window, refocus)
    # An entry is not wholly dead, so its first live block lies in it.
    first = window.timeline.next_present(window.first_blocks)
    last = np.minimum(window.first_blocks + window.span_blocks, snapshot.blocks) - 1
    ordinals, until = snapshot.documents_at(first), snapshot.documents_at(last)
    documents, counts = ordinals.tolist(), _live_between(snapshot, ordinals, until).tolist()
    lines = snapshot.spans_at(first)[1].tolist()
    result = []
    columns = (window.lod, window.index, window.starts, window.stops, window.costs)
    for at, (lod, index, start, stop, cost) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        result.append(
            EntryExplanation(
                position=at,
                lod=lod,
                index=index,
                start=start,
                stop=stop,
                cost=cost,
                score=scores.get((lod, index)),
                source=snapshot.documents[documents[at]].source,
                line=lines[at],
                sources=counts[at],
                why=_tail_or(reasons, window, at, lod, index),
                kept=tuple(kept.get((lod, index), ())),
            )
        )
    return result


def _live_between(snapshot: Snapshot, first: Ordinals, last: Ordinals) -> IntArray:
    """How many live documents there are from each ordinal of ``first`` [k] to that of ``last``, int64 [k]."""
    if not snapshot.timeline().dead:
        return last.astype(np.int64) - first + 1
    live = np.array([record.ordinal for record in snapshot.documents.live()], np.int64)
    return np.searchsorted(live, last, side="right") - np.searchsorted(live, first, side="left")


def _last_words(
    window: WorkingContext, refocus: Refocus | None
) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], Decision]]:
    if refocus is None:
        return {}, {}
    before = refocus.before
    nodes = list(zip(before.lod.tolist(), before.index.tolist(), strict=True))
    scores = dict(zip(nodes, refocus.scores.entries.tolist(), strict=True))
    reasons: dict[tuple[int, int], Decision] = {}
    for decision in refocus.plan.decisions:
        edit = decision.edit
        node = (edit.lod, edit.index)
        if decision.chosen and not isinstance(edit, Collapse) and edit.lod == 1:
            node = (0, edit.index)
        reasons.setdefault(node, decision)
    return scores, reasons


def _tail_or(reasons: dict[tuple[int, int], Decision], window: WorkingContext, at: int, lod: int, index: int) -> str:
    if int(window.first_blocks[at]) >= window.tail_start:
        return "protected tail"
    decision = reasons.get((lod, index))
    if decision is None:
        return "opened with its family" if lod else "kept raw"
    verb = "collapse" if isinstance(decision.edit, Collapse) else "expand"
    return f"{verb} {'chosen' if decision.chosen else 'refused'}: {decision.reason}"
