"""Suffix: what followed the last tokens before is likely to follow them again. No model, no training.

The blocks in which the longest earlier occurrences of the newest tokens went on, found in the whole history by the suffix
index (the strongest cheap rule on code). Direction: the longer the match, the higher, of equal ones the newer; what is raw
without being such a block, or of the document being written, is let go.
"""

from __future__ import annotations

import numpy as np

from megacontext.core import BLOCK, FocusScores, Targets
from megacontext.core.node import BoolArray
from megacontext.engine.policies.base import FloatArray, FocusView, IntArray

LONGEST = 16
"""Matches longer than this are not told apart."""
# A match that goes on in the last tokens of a block may need the next one, too.
NEAR_END = 8


class Suffix:
    """Open where the newest tokens occurred before: ``each`` newest matches a length, of at least ``shortest`` tokens (what
    shorter ones point to costs more than it brings on long histories: docs/log.md, 2026-11-24)."""

    name = "suffix"

    def __init__(self, *, each: int = 8, shortest: int = 8, release: float = 0.06) -> None:
        self._each, self._shortest, self._release = each, shortest, release

    def score(self, view: FocusView) -> FocusScores:
        """See ``FocusPolicy.score``."""
        window = view.window
        raw = np.flatnonzero(window.lod == 0)
        other = raw[view.reader.documents_at(window.index[raw]) != view.document]
        entries = np.zeros(len(window), dtype=np.float32)
        entries[other] = -self._release
        blocks, gains = self._wanted(view)
        at = window.covering(blocks)
        open_now = (at >= 0) & (window.lod[at] == 0)
        np.maximum.at(entries, at[open_now], gains[open_now])
        return FocusScores(entries, Targets(blocks[~open_now], gains[~open_now]))

    def _wanted(self, view: FocusView) -> tuple[IntArray, FloatArray]:
        """Blocks int64 [k], best first, and their scores float32 [k] in (0, 1]."""
        places, lengths = view.searches.suffixes(view.query, self._each, view.window.tail_start * BLOCK)
        long = lengths >= self._shortest
        blocks, lengths = went_on(places[long], np.minimum(lengths[long], LONGEST), view.window.tail_start)
        there = readable(view, blocks)
        blocks, lengths = blocks[there], lengths[there]
        # Of two with equal lengths the newer has the higher score, by less than a token more would bring.
        newness = (np.argsort(np.argsort(blocks)) + 1) / (len(blocks) + 1)
        return blocks, ((lengths + newness) / (LONGEST + 1)).astype(np.float32)


def readable(view: FocusView, blocks: IntArray) -> BoolArray:
    """Which of ``blocks`` int64 [k] the window covers and its reader may see raw: bool [k]. A match may lead up to one that he
    may not."""
    timeline, raw = view.window.timeline, np.zeros(len(blocks), dtype=np.int8)
    there = (view.window.covering(blocks) >= 0) & ~timeline.absent_mask(raw, blocks)
    seen: BoolArray = there & ~timeline.pruned_mask(raw, blocks)
    return seen


def went_on(places: IntArray, lengths: IntArray, stop: int) -> tuple[IntArray, IntArray]:
    """The blocks before ``stop`` in which text goes on at ``places`` int64 [k], each once, longest match first; and the
    length of each one's longest, int64."""
    blocks = places // BLOCK
    behind = blocks[places % BLOCK >= BLOCK - NEAR_END] + 1
    both = np.concatenate([blocks, behind])
    length = np.concatenate([lengths, lengths[places % BLOCK >= BLOCK - NEAR_END]])
    order = np.lexsort((-both, -length))
    order = order[both[order] < stop]
    _, first = np.unique(both[order], return_index=True)
    kept = order[np.sort(first)]
    return both[kept], length[kept]
