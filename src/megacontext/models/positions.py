"""Where slots sit in the range of positions that the base model was trained for.

A strategy maps token spans to positions; it never changes their order. ``Absolute`` is faithful while the history fits,
``WindowRanks`` always works, ``Log`` keeps near distances exact and squeezes far ones. To keep room for what will be
decoded, pass a smaller ``context_length`` than the base has.

Shapes: n slots; ``start``/``stop`` int64 [n] are the tokens that each slot covers (a raw token: 1), in order and disjoint.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megacontext.errors import BudgetError, ConfigError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

# Rotary positions go through float32, where whole numbers from 2^24 on collide.
EXACT_IN_FLOAT32 = 1 << 24


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
        limit = min(context_length, EXACT_IN_FLOAT32)
        if len(stop) and stop[-1] > limit:
            raise BudgetError(
                f"absolute positions reach {int(stop[-1]):,}, but the base was made for {limit:,}: "
                "use the window or the log strategy for histories that are longer"
            )
        return _centres(start, stop)


class WindowRanks:
    """Ranks: order kept, distances forgotten. A raw token takes one position, a gist the first of ``gist_stride``.

    A gist's neighbours in the window were 32 tokens or more away: with a stride above 1, heads that look at the token
    before find none there and leave it as it is. Where the window is too full, gists move closer together.
    """

    name = "window"

    def __init__(self, gist_stride: int = 1) -> None:
        if gist_stride < 1:
            raise ConfigError(f"a gist takes at least one position, not {gist_stride}")
        self.gist_stride = gist_stride

    def __call__(self, start: IntArray, stop: IntArray, context_length: int) -> IntArray:
        """See ``PositionStrategy``."""
        _check_count(len(start), context_length)
        is_gist = stop - start > 1
        room = context_length - len(start)
        stride = min(self.gist_stride, 1 + room // max(1, int(is_gist.sum())))
        taken = np.where(is_gist, stride, 1)
        positions: IntArray = np.cumsum(taken, dtype=np.int64) - taken
        return positions


class Log:
    """Exact distances to the cursor up to ``near`` tokens; beyond, they grow ever more slowly (never faster than the tokens).

    The newest slots sit at the end of the base's range. Distances are measured from the cursor rounded up to ``stride``, so
    that appending a token moves nothing (and keeps the key/value cache) until a stride is full. A history that fits keeps
    its own positions, counted from its first slot. Where slots crowd, older ones give way first.
    """

    name = "log"

    def __init__(self, near: int = 256, stride: int = 64) -> None:
        self._near, self._stride = near, stride

    def __call__(self, start: IntArray, stop: IntArray, context_length: int) -> IntArray:
        """See ``PositionStrategy``."""
        _check_count(len(start), context_length)
        if not len(start):
            return np.zeros(0, dtype=np.int64)
        limit = min(context_length, EXACT_IN_FLOAT32)
        centres = _centres(start, stop)
        if stop[-1] - start[0] <= limit:
            relative: IntArray = centres - start[0]
            return relative
        cursor = -(-int(stop[-1]) // self._stride) * self._stride
        if cursor - int(stop[-1]) > limit - len(start):
            cursor = int(stop[-1])  # no room to spare for a stride
        positions: IntArray = limit - 1 - self._distances(cursor - 1 - centres, limit)
        return positions

    def _distances(self, back: IntArray, limit: int) -> IntArray:
        """Distances int64 [n] from the end of the range, below ``limit``, for tokens ``back`` int64 [n] from the cursor."""
        near = min(self._near, limit // 2)
        beyond = np.maximum(back - near, 0)
        scale = _scale(float(beyond.max()), float(limit - 1 - near))
        squeezed = near + np.floor(_squeeze(beyond.astype(np.float64), scale)).astype(np.int64)
        wanted = np.where(back <= near, back, squeezed)[::-1]
        places = np.arange(len(back), dtype=np.int64)
        apart = np.maximum.accumulate(wanted - places) + places
        result: IntArray = np.minimum(apart, limit - len(back) + places)[::-1]
        return result


def window_ranks(encoder: object | None) -> WindowRanks:
    """The ranks that a GistNet was trained with; dense ones for any other encoder and for none."""
    return WindowRanks(int(getattr(getattr(encoder, "config", None), "position_stride", 1)))


STRATEGIES: dict[str, type[Absolute] | type[WindowRanks] | type[Log]] = {
    strategy.name: strategy for strategy in (Absolute, WindowRanks, Log)
}


def _centres(start: IntArray, stop: IntArray) -> IntArray:
    """The middle token of each span (of two, the earlier); a raw token's own position."""
    centres: IntArray = (start + stop - 1) // 2
    return centres


def _squeeze(distance: FloatArray, scale: float) -> FloatArray:
    """scale·ln(1 + distance/scale): slope 1 at 0, then ever flatter."""
    squeezed: FloatArray = scale * np.log1p(distance / scale)
    return squeezed


def _scale(farthest: float, room: float) -> float:
    """The scale at which the ``farthest`` distance is squeezed to ``room``; as good as none where it fits."""
    if farthest <= room:
        return 1e12
    low, high = 1e-3, farthest * 1e3
    for _ in range(80):
        middle = math.sqrt(low * high)
        if middle * math.log1p(farthest / middle) < room:
            low = middle
        else:
            high = middle
    return low


def _check_count(slots: int, context_length: int) -> None:
    if slots > context_length:
        raise BudgetError(f"{slots} slots do not fit into the {context_length} positions of the base: lower the budget")
