"""Retrieval: BM25 over all blocks of the memory with the newest tokens as the query.

Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond". Direction: the
better the match, the higher; hits are targets wherever in the tree they lie, divided by the best hit's
score. What is raw without being a hit is let go.
"""

from __future__ import annotations

import numpy as np

from megacontext.core import FocusScores, Targets
from megacontext.engine.policies.base import FocusView


class Retrieval:
    """Open what matches the last ``query_tokens`` tokens; at most ``limit`` hits a refocus."""

    name = "retrieval"

    def __init__(self, *, query_tokens: int = 32, limit: int = 16, release: float = 0.3) -> None:
        self._query_tokens, self._limit, self._release = query_tokens, limit, release

    def score(self, view: FocusView) -> FocusScores:
        """See ``FocusPolicy.score``."""
        window = view.window
        entries = np.where(window.lod == 0, -self._release, 0.0).astype(np.float32)
        blocks, scores = view.search(view.query[-self._query_tokens :], self._limit)
        if not len(blocks):
            return FocusScores(entries)
        gains = (scores / max(float(scores[0]), 1e-6)).astype(np.float32)
        at = window.covering(blocks)
        raw = (at >= 0) & (window.lod[at] == 0)
        np.maximum.at(entries, at[raw], gains[raw])
        return FocusScores(entries, Targets(blocks[~raw], gains[~raw]))
