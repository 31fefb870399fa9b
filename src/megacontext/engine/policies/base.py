"""The contract of a focus policy: one window in, one signed score per entry out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megacontext.core import FocusScores, WorkingContext
from megacontext.engine.reader import BlockReader

IntArray = npt.NDArray[np.int64]
Search = Callable[[IntArray, int], tuple[IntArray, npt.NDArray[np.float32]]]
"""``(query token ids, limit) → (blocks int64 [k], scores float32 [k])``, best first."""


def no_search(query: IntArray, limit: int) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """A search that finds nothing: for windows without an index."""
    return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class FocusView:
    """All that a policy may look at; it precedes the tokens that the choice is for.

    ``query`` int64 [q] are the newest real tokens, oldest first; ``document`` the ordinal of the
    document at the cursor (-1: none); ``step`` counts refocus steps of the session.
    """

    window: WorkingContext
    reader: BlockReader
    query: IntArray
    document: int = -1
    step: int = 0
    search: Search = no_search


class FocusPolicy(Protocol):
    """Whatever yields scores. Positive: expand (or keep raw). Negative: collapse."""

    @property
    def name(self) -> str:
        """As users write it."""

    def score(self, view: FocusView) -> FocusScores:
        """Scores float32 [n] of the window's entries, each in [-1, 1]; does not change the view."""
