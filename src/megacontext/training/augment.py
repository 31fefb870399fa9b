"""What makes a small base model learn to look things up far back: pasted repeats and recall lines, in any mixture.

Pasted repeats: an earlier segment of the window is pasted over a later stretch, so that the best prediction there is
to look up where the same tokens stood before. Recall lines (``training.recall``): a fact that a line states early is
asked for late. Without either a plain small model's loss hardly depends on far context at all (``EXPERIMENTS.md``
§1.1 of the design).

Nothing that is written at a place depends on tokens behind it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megacontext.errors import ConfigError
from megacontext.training.recall import RecallLines

IntArray = npt.NDArray[np.int64]


def augment(
    tokens: IntArray,
    rng: np.random.Generator,
    *,
    repeats: float,
    recall: float = 0.0,
    lines: RecallLines | None = None,
    longest: int = 128,
    earliest: int | None = None,
) -> IntArray:
    """A copy of ``tokens`` int64 [T], with probability ``repeats`` with pasted repeats and with ``recall`` with recall lines.

    Repeats and questions stand at ``earliest`` or later. The first draws are those of ``paste_repeats``, and without
    ``recall`` there are no others. ConfigError where recall lines are wanted and ``lines`` is None.
    """
    result = paste_repeats(tokens, rng, probability=repeats, longest=longest, earliest=earliest)
    if not recall:
        return result
    if lines is None:
        raise ConfigError("recall lines are written through a tokenizer: pass RecallLines(tokenizer)")
    # Afterwards, so that no repeat covers a fact that is asked for.
    return lines.plant(result, rng, probability=recall, earliest=earliest)


def paste_repeats(
    tokens: IntArray,
    rng: np.random.Generator,
    *,
    probability: float,
    shortest: int = 24,
    longest: int = 128,
    most: int = 4,
    earliest: int | None = None,
) -> IntArray:
    """A copy of ``tokens`` int64 [T] in which, with ``probability``, segments are repeated later on.

    Repeats stand at ``earliest`` or later; their sources end before they begin. ConfigError where ``earliest`` leaves no
    room for the longest source before it or the longest repeat behind it.
    """
    result = tokens.copy()
    if rng.random() >= probability or len(tokens) <= 3 * longest:
        return result
    first = 2 * longest if earliest is None else earliest
    if not longest < first < len(tokens) - longest:
        raise ConfigError(
            f"repeats of up to {longest} tokens do not fit {len(tokens)} from token {first} on, which must lie between "
            f"{longest + 1} and {len(tokens) - longest - 1}"
        )
    for _ in range(int(rng.integers(1, most + 1))):
        length = int(rng.integers(shortest, longest + 1))
        target = int(rng.integers(first, len(tokens) - length))
        source = int(rng.integers(0, target - length))
        result[target : target + length] = result[source : source + length]
    return result
