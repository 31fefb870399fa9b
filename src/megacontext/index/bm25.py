"""BM25 over blocks of token ids. Higher scores are better matches; a block without any query term has 0.

Robertson and Zaragoza, *The Probabilistic Relevance Framework: BM25 and Beyond* (2009), with two simplifications:
the average length of a document is a block's, 32, and how often a term occurs in the query does not count.

Shapes: k blocks, t terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacontext.core.node import BLOCK
from megacontext.errors import ConfigError

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

_SLOTS = np.arange(BLOCK, dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class Bm25Config:
    """`k1`: how soon repetitions of a term stop to count; `b`: how much longer blocks are marked down."""

    k1: float = 1.2
    b: float = 0.75

    def __post_init__(self) -> None:
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise ConfigError(f"BM25 needs k1 >= 0 and b in [0, 1], not k1={self.k1}, b={self.b}")


def real_tokens(fill: U8) -> Bool:
    """Which slots of blocks hold real tokens, not filling: bool [k, 32] from uint8 [k]."""
    return fill[:, None] > _SLOTS


def block_counts(ids: U32, fill: U8, terms: U32) -> I64:
    """In how many of the blocks `ids` [k, 32] each of the sorted, distinct `terms` [t] occurs, int64 [t]."""
    hit = np.isin(ids, terms) & real_tokens(fill)
    block = np.nonzero(hit)[0]
    pairs = np.unique(block * len(terms) + np.searchsorted(terms, ids[hit]))
    return np.bincount(pairs % max(len(terms), 1), minlength=len(terms)).astype(np.int64)


def inverse_frequency(blocks: int, counts: I64) -> F64:
    """ln(1 + (N - df + 0.5) / (df + 0.5)) of terms that `counts` [t] of all `blocks` hold; never negative."""
    return np.asarray(np.log1p((blocks - counts + 0.5) / (counts + 0.5)), np.float64)


def scores(ids: U32, fill: U8, terms: U32, weights: F64, config: Bm25Config) -> F64:
    """BM25 scores [k] of blocks `ids` [k, 32] for `terms` [t] with `weights` [t], their inverse frequencies."""
    # Filling becomes a number that no token id has.
    padded = np.where(real_tokens(fill), ids.astype(np.int64), -1)
    norm = config.k1 * (1 - config.b + config.b * fill.astype(np.float64) / BLOCK)
    total = np.zeros(len(ids))
    for term, weight in zip(terms.tolist(), weights.tolist(), strict=True):
        count = np.count_nonzero(padded == term, axis=1)
        total += np.where(count > 0, weight * count * (config.k1 + 1) / (count + norm), 0.0)
    return total
