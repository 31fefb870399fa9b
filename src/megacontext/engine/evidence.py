"""Lexical evidence: what the last tokens say about which block is needed next.

Hand features of blocks, computed from token ids alone, at a cost linear in the blocks looked at (those
of the window, so constant). The strongest of them is the longest suffix match: how many of the last
tokens occur, in this order, inside the block, with something behind them to copy.

Shapes: k blocks, T = 32 tokens of a block, q query tokens (the newest real tokens, oldest first).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from megacontext.core import BLOCK

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

LONGEST_SUFFIX = 16
# Labels come from contexts of this length: whatever lies farther back counts as far, not as ever less likely.
FARTHEST = 1024
_NOTHING = -1

FEATURES = (
    "suffix",
    "suffix_is_longest",
    "suffix_is_longest_and_newest",
    "count_1",
    "count_2",
    "count_3",
    "overlap_8",
    "overlap_32",
    "overlap_128",
    "rarest_shared_8",
    "log_distance",
    "rank",
    "same_document",
    "distinct",
    "rarity",
)
"""Names of the columns that ``block_features`` returns, in order; LensNet's configuration records them."""


def block_features(
    ids: npt.NDArray[np.uint32],
    fill: npt.NDArray[np.uint8],
    query: IntArray,
    *,
    distance: IntArray,
    same_document: npt.NDArray[np.bool_],
) -> FloatArray:
    """Features float32 [k, F] of blocks ``ids`` [k, 32] for the newest tokens ``query`` [q].

    ``distance`` int64 [k]: tokens from the block's start to the cursor; ``same_document`` bool [k].
    """
    tokens = np.where(np.arange(BLOCK) < fill[:, None], ids.astype(np.int64), _NOTHING)
    runs = suffix_runs(tokens, query)
    longest = runs.max(axis=1)
    best = (longest == longest.max(initial=0)) & (longest > 0)
    newest = np.zeros(len(tokens), dtype=np.bool_)
    if best.any():
        newest[np.flatnonzero(best)[np.argmin(distance[best])]] = True
    rarity = inverse_frequency(tokens)
    rank = np.argsort(np.argsort(distance, kind="stable"), kind="stable")
    columns = [
        longest,
        best,
        newest,
        *(np.log1p((runs >= length).sum(axis=1)) for length in (1, 2, 3)),
        *(_overlap(tokens, rarity, query[-length:]) for length in (8, 32, 128)),
        _rarest_shared(tokens, rarity, query[-8:]),
        np.log2(np.clip(distance, 1, FARTHEST)),
        rank / max(1, len(tokens) - 1),
        same_document,
        _first_occurrence(tokens).sum(axis=1) / BLOCK,
        np.where(tokens >= 0, rarity, 0.0).sum(axis=1) / np.maximum(fill, 1),
    ]
    return np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1)


def suffix_runs(tokens: IntArray, query: IntArray) -> npt.NDArray[np.int64]:
    """How many of the newest query tokens end at each place of a block: int64 [k, 32].

    The block's last place never counts: what would follow there lies outside the block.
    """
    runs = np.zeros(tokens.shape, dtype=np.int64)
    alive = np.ones(tokens.shape, dtype=np.bool_)
    for back in range(min(LONGEST_SUFFIX, len(query))):
        same = tokens == query[-1 - back]
        alive[:, back:] &= same[:, : BLOCK - back]
        alive[:, :back] = False
        if not alive.any():
            break
        runs += alive
    runs[:, -1] = 0
    return runs


def inverse_frequency(tokens: IntArray) -> npt.NDArray[np.float64]:
    """log(k / blocks that hold the token) at each place, float64 [k, 32]; filling counts as frequent."""
    flat = np.where(_first_occurrence(tokens), tokens, _NOTHING)
    values, counts = np.unique(flat[flat >= 0], return_counts=True)
    if not len(values):
        return np.zeros(tokens.shape)
    at = np.minimum(np.searchsorted(values, tokens), len(values) - 1)
    known = values[at] == tokens
    result: npt.NDArray[np.float64] = np.where(known, np.log((1 + len(tokens)) / counts[at]), 0.0)
    return result


def _first_occurrence(tokens: IntArray) -> npt.NDArray[np.bool_]:
    """Where a token stands in its block for the first time: bool [k, 32]; False for filling."""
    order = np.argsort(tokens, axis=1, kind="stable")
    ranked = np.take_along_axis(tokens, order, axis=1)
    first = np.ones(tokens.shape, dtype=np.bool_)
    first[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    result = np.zeros(tokens.shape, dtype=np.bool_)
    np.put_along_axis(result, order, first, axis=1)
    return result & (tokens >= 0)


def _overlap(tokens: IntArray, rarity: npt.NDArray[np.float64], query: IntArray) -> npt.NDArray[np.float64]:
    shared = np.isin(tokens, query) & _first_occurrence(tokens)
    result: npt.NDArray[np.float64] = np.where(shared, rarity, 0.0).sum(axis=1)
    return result


def _rarest_shared(tokens: IntArray, rarity: npt.NDArray[np.float64], query: IntArray) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = np.where(np.isin(tokens, query) & (tokens >= 0), rarity, 0.0).max(axis=1)
    return result
