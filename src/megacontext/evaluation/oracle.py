"""The oracle: blocks expanded by what expanding them really saves. It looks at the answer.

For an item whose far context is all gists, each block in turn is read raw and the horizon is scored again. One
set of passes serves every decision point, since the tokens before it are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from megacontext.engine.assemble import slots_of
from megacontext.evaluation.arms import Choice, Item, window_of
from megacontext.evaluation.items import IntArray
from megacontext.evaluation.scoring import Chunk, FloatArray, Scorer

LodArray = npt.NDArray[np.int8]


class Gains:
    """NLL saved by each single expansion; measured once an item, for every budget and interval."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._known: dict[int, FloatArray] = {}

    def __call__(self, item: Item) -> FloatArray:
        """Nats saved per scored token by reading each far block raw: float64 [far/32, H]."""
        if item.row not in self._known:
            patterns = [np.ones(item.blocks, dtype=np.int8)]
            for block in range(item.blocks):
                opened = patterns[0].copy()
                opened[block] = 0
                patterns.append(opened)
            before, *after = self._scorer(_chunks(item, patterns))
            self._known[item.row] = before - np.stack(after)
        return self._known[item.row]

    def best(self, interval: int) -> Choice:
        """A choice of the blocks that save most over the next ``interval`` tokens, none that costs."""

        def choose(item: Item, at: int, most: int) -> IntArray:
            gain = self(item)[:, at : at + interval].mean(axis=1)
            order = np.argsort(-gain, kind="stable")[:most]
            return np.sort(order[gain[order] > 0])

        return choose


def _chunks(item: Item, patterns: Sequence[LodArray]) -> list[Chunk]:
    nothing = np.zeros(0, dtype=np.int64)
    windows = [window_of(item, pattern, item.context) for pattern in patterns]
    return [
        Chunk(context=slots_of(window, item.reader, nothing, gists=True), following=item.scored, start=item.context)
        for window in windows
    ]
