"""The contract of a focus policy: one window in, one signed score per entry out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from megacontext.core import FocusScores, WorkingContext
from megacontext.engine.reader import BlockReader
from megacontext.storage import Snapshot

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
Search = Callable[[IntArray, int], tuple[IntArray, FloatArray]]
"""``(query token ids, limit) → (blocks int64 [k], scores float32 [k])``, best first."""
SuffixSearch = Callable[[IntArray, int, int], tuple[IntArray, IntArray]]
"""``(query token ids, each, stop) → (places int64 [k], lengths int64 [k])``: token positions before ``stop`` that follow
earlier occurrences of the query's last tokens, and how many of these stand there; longest first, of equal ones the newest
(``index.suffix``)."""


def no_search(query: IntArray, limit: int) -> tuple[IntArray, FloatArray]:
    """A search that finds nothing: for windows without an index."""
    return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)


def no_suffixes(query: IntArray, each: int, stop: int) -> tuple[IntArray, IntArray]:
    """A suffix search that finds nothing."""
    return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)


class Searches(NamedTuple):
    """What the indexes of a memory find, each at a cost that does not grow with the history: ``words`` by BM25 over tokens,
    ``suffixes`` by the last tokens in order, ``gists`` by the gists of the last tokens."""

    words: Search = no_search
    suffixes: SuffixSearch = no_suffixes
    gists: Search = no_search


NOTHING_FOUND = Searches()
"""Searches without an index."""

Searching = Callable[[Snapshot], Searches]
"""The searches of a memory in one snapshot of it."""


def no_searches(snapshot: Snapshot) -> Searches:
    """Searches without an index."""
    return NOTHING_FOUND


@dataclass(frozen=True, kw_only=True)
class FocusView:
    """All that a policy may look at; it precedes the tokens that the choice is for.

    ``query`` int64 [q] are the newest real tokens, oldest first; ``document`` the ordinal of the
    document at the cursor (-1: none); ``step`` counts refocus steps of the session. ``searches`` find nothing that the reader
    may not see.
    """

    window: WorkingContext
    reader: BlockReader
    query: IntArray
    document: int = -1
    step: int = 0
    searches: Searches = NOTHING_FOUND

    @property
    def search(self) -> Search:
        """BM25 over the blocks of the memory."""
        return self.searches.words


class FocusPolicy(Protocol):
    """Whatever yields scores. Positive: expand (or keep raw). Negative: collapse."""

    @property
    def name(self) -> str:
        """As users write it."""

    def score(self, view: FocusView) -> FocusScores:
        """Scores float32 [n] of the window's entries, each in [-1, 1]; does not change the view."""
