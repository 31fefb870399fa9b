"""Suffix: what followed the last tokens before is likely to follow them again. No model, no training.

The blocks in which the longest earlier occurrences of the newest tokens went on, found in the whole history by the suffix
index (the strongest cheap rule on code). Direction: the longer the match, the higher, of equal ones the newer; what is raw
without being such a block is let go.
"""

from __future__ import annotations

import numpy as np

from megacontext.core import BLOCK, FocusScores, Targets
from megacontext.engine.policies.base import FloatArray, FocusView, IntArray

LONGEST = 16
"""Matches longer than this are not told apart."""
# A match that goes on in the last tokens of a block may need the next one, too.
NEAR_END = 8


class Suffix:
    """Open where the newest tokens occurred before: ``each`` newest matches a length, of at least ``shortest`` tokens."""

    name = "suffix"

    def __init__(self, *, each: int = 8, shortest: int = 2, release: float = 0.05) -> None:
        self._each, self._shortest, self._release = each, shortest, release

    def score(self, view: FocusView) -> FocusScores:
        """See ``FocusPolicy.score``."""
        window = view.window
        entries = np.where(window.lod == 0, -self._release, 0.0).astype(np.float32)
        blocks, gains = self._wanted(view)
        at = window.covering(blocks)
        raw = (at >= 0) & (window.lod[at] == 0)
        np.maximum.at(entries, at[raw], gains[raw])
        return FocusScores(entries, Targets(blocks[~raw], gains[~raw]))

    def _wanted(self, view: FocusView) -> tuple[IntArray, FloatArray]:
        """Blocks int64 [k], best first, and their scores float32 [k] in (0, 1]."""
        places, lengths = view.searches.suffixes(view.query, self._each, view.window.tail_start * BLOCK)
        long = lengths >= self._shortest
        blocks, lengths = went_on(places[long], np.minimum(lengths[long], LONGEST), view.window.tail_start)
        # Of two with equal lengths the newer has the higher score, by less than a token more would bring.
        newness = (np.argsort(np.argsort(blocks)) + 1) / (len(blocks) + 1)
        return blocks, ((lengths + newness) / (LONGEST + 1)).astype(np.float32)


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
