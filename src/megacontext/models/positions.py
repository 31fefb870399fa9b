"""Where slots sit in the range of positions that the base model was trained for.

A strategy maps token spans to positions; it never changes their order. ``Absolute`` is faithful while the
history fits, ``WindowRanks`` always works, ``Log`` keeps near distances exact and squeezes far ones.

Shapes: n slots; ``start``/``stop`` int64 [n] are the tokens that each slot covers (a raw token: 1).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from megacontext.errors import BudgetError

IntArray = npt.NDArray[np.int64]


class PositionStrategy(Protocol):
    """Spans to positions: int64 [n], strictly increasing, all in [0, context_length)."""

    @property
    def name(self) -> str:
        """As users write it."""
        ...

    def __call__(self, start: IntArray, stop: IntArray, context_length: int) -> IntArray:
        """Positions of the slots; BudgetError where they cannot fit."""
        ...


class Absolute:
    """A raw token keeps its own position, a gist sits at the centre of its span."""

    name = "absolute"

    def __call__(self, start: IntArray, stop: IntArray, context_length: int) -> IntArray:
        """See ``PositionStrategy``."""
        if len(stop) and stop[-1] > context_length:
            raise BudgetError(
                f"absolute positions reach {int(stop[-1]):,}, but the base was made for {context_length:,}: "
                "use the window or the log strategy for histories that are longer"
            )
        return _increasing((start + stop - 1) // 2, context_length)


class WindowRanks:
    """Dense ranks 0 … n-1: order kept, distances forgotten."""

    name = "window"

    def __call__(self, start: IntArray, stop: IntArray, context_length: int) -> IntArray:
        """See ``PositionStrategy``."""
        _check_count(len(start), context_length)
        return np.arange(len(start), dtype=np.int64)


class Log:
    """Exact distances to the cursor up to ``near`` tokens, beyond them compressed logarithmically.

    The compressed range is what the base has left; ``near`` is cut where the slots themselves need it.
    """

    name = "log"

    def __init__(self, near: int = 256) -> None:
        self._near = near

    def __call__(self, start: IntArray, stop: IntArray, context_length: int) -> IntArray:
        """See ``PositionStrategy``."""
        _check_count(len(start), context_length)
        if not len(start) or stop[-1] - start[0] <= context_length:
            return _increasing((start + stop - 1) // 2 - (start[0] if len(start) else 0), context_length)
        back = stop[-1] - 1 - (start + stop - 1) // 2
        near = min(self._near, context_length // 2)
        far_range = context_length - 1 - near
        beyond = np.maximum(back - near, 0)
        squeezed = far_range * np.log1p(beyond) / np.log1p(max(1, int(beyond.max())))
        distance = np.where(back <= near, back, near + np.floor(squeezed)).astype(np.int64)
        return _increasing(context_length - 1 - distance, context_length)


STRATEGIES: dict[str, type[Absolute] | type[WindowRanks] | type[Log]] = {
    strategy.name: strategy for strategy in (Absolute, WindowRanks, Log)
}


def _increasing(positions: IntArray, context_length: int) -> IntArray:
    """The nearest strictly increasing positions within the range: ties move apart, first down, then up."""
    places = np.arange(len(positions), dtype=np.int64)
    ceiling = context_length - len(positions) + places
    lowered = np.minimum(positions, ceiling)
    raised: IntArray = np.maximum.accumulate(lowered - places) + places
    return raised


def _check_count(slots: int, context_length: int) -> None:
    if slots > context_length:
        raise BudgetError(f"{slots} slots do not fit into the {context_length} positions of the base: lower the budget")
