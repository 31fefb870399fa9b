"""Several rankings made into one.

Cormack, Clarke and Büttcher, *Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods* (2009):
what a ranking has at place r counts 1 / (60 + r), whatever its scores are; counts add up, and higher is better.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megacontext.index.bm25 import I64
from megacontext.index.fulltext import Hits, best

CONSTANT = 60


def fused(rankings: Sequence[I64], limit: int) -> Hits:
    """The `limit` best of what stands in rankings of distinct blocks, int64 [k] each, best first; of equal ones the newer."""
    blocks, place = np.unique(np.concatenate([np.zeros(0, np.int64), *rankings]), return_inverse=True)
    total = np.zeros(len(blocks))
    counts = [1 / (CONSTANT + 1 + np.arange(len(each))) for each in rankings]
    np.add.at(total, place, np.concatenate([np.zeros(0), *counts]))
    return best(blocks, total, limit)
