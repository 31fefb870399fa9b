"""Random scores: the control that any other policy has to beat. Reproducible by seed and step."""

from __future__ import annotations

import numpy as np

from megacontext.core import FocusScores
from megacontext.engine.policies.base import FocusView


class Random:
    """Uniform in [-1, 1], drawn anew at each refocus."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def score(self, view: FocusView) -> FocusScores:
        """See ``FocusPolicy.score``."""
        rng = np.random.default_rng((self._seed, view.step))
        return FocusScores(rng.uniform(-1, 1, len(view.window)).astype(np.float32))
