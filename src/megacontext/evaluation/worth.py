"""What having blocks raw is worth, by counterfactual passes: the truth that labels and measures of stability share.

Effects are not additive: what two blocks bring together is neither's own plus the other's, so sets are measured as sets, and
always in a state: what else stands raw. Shapes: k far blocks, s sets, H scored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megacontext.engine.assemble import slots_of
from megacontext.evaluation.arms import Item, window_of
from megacontext.evaluation.items import IntArray
from megacontext.evaluation.oracle import LodArray
from megacontext.evaluation.scoring import Chunk, FloatArray, Scorer


def worth_of_sets(item: Item, scorer: Scorer, state: LodArray, sets: Sequence[IntArray]) -> FloatArray:
    """NLL of every scored token with a set's blocks as gists, minus that with them raw: float64 [s, H], in nats.

    Positive where raw is better. ``state`` int8 [k] says how all other blocks stand (0 raw, 1 gist); ``sets`` are far
    blocks, int64 [≤ k] each. What is asked for twice, the state itself above all, is computed once.
    """
    chunks = []
    for blocks in sets:
        for lod in (1, 0):
            pattern = state.copy()
            pattern[blocks] = lod
            window = window_of(item, pattern, item.context)
            slots = slots_of(window, item.reader, np.zeros(0, dtype=np.int64), gists=True)
            chunks.append(Chunk(context=slots, following=item.scored, start=item.context))
    found = scorer(chunks)
    return np.stack([found[at] - found[at + 1] for at in range(0, len(found), 2)])
