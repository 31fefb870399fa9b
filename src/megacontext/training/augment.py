"""Pasted repeats: what makes a small base model learn to copy from far back.

An earlier segment of the window is pasted over a later stretch, so that the best prediction there is
to look up where the same tokens stood before. Without it a plain small model's loss hardly depends
on far context at all (``EXPERIMENTS.md`` §1.1 of the design).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def paste_repeats(
    tokens: npt.NDArray[np.int64],
    rng: np.random.Generator,
    *,
    probability: float,
    shortest: int = 24,
    longest: int = 128,
    most: int = 4,
    earliest: int | None = None,
) -> npt.NDArray[np.int64]:
    """A copy of ``tokens`` int64 [T] in which, with ``probability``, segments are repeated later on.

    Repeats stand at ``earliest`` or later; their sources end before they begin.
    """
    result = tokens.copy()
    if rng.random() >= probability or len(tokens) < 3 * longest:
        return result
    for _ in range(int(rng.integers(1, most + 1))):
        length = int(rng.integers(shortest, longest + 1))
        target = int(rng.integers(2 * longest if earliest is None else earliest, len(tokens) - length))
        source = int(rng.integers(0, target - length))
        result[target : target + length] = result[source : source + length]
    return result
