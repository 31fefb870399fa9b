"""Recency: the newest blocks raw, as many as fit. What most systems do, and hard to beat on code.

Direction: the nearer to the cursor, the higher. Scores fall from 1 to -1 by rank among the entries, and
pass zero where the budget for raw blocks ends.
"""

from __future__ import annotations

import numpy as np

from megacontext.core import BLOCK, FocusScores
from megacontext.engine.policies.base import FocusView


class Recency:
    """Score by age alone."""

    name = "recency"

    def score(self, view: FocusView) -> FocusScores:
        """See ``FocusPolicy.score``."""
        window = view.window
        ages = np.arange(len(window))[::-1]
        fits = max(1, (window.budget - len(window)) // BLOCK)
        scores = np.where(ages < fits, 1.0 - 0.5 * ages / fits, -1.0 + 0.5 * fits / (ages + 1))
        return FocusScores(scores.astype(np.float32))
