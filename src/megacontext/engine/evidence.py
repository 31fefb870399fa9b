"""Lexical evidence: what the last tokens say about which block is needed next.

Hand features of blocks, computed from token ids alone, at a cost linear in the blocks looked at (those
of the window, so constant). The strongest of them is the longest suffix match: how many of the last
tokens occur, in this order, inside the block, with something behind them to copy.

Shapes: k blocks, T = 32 tokens of a block, q query tokens (the newest real tokens, oldest first).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext.core import BLOCK

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]

LONGEST_SUFFIX = 16
# Labels come from contexts of this length: whatever lies farther back counts as far, not as ever less likely.
FARTHEST = 1024
_NOTHING = -1
_NEVER = 1 << 40
# Three ids in one number.
_TOKEN_BITS = 21
# A longer match says no more: what follows it is copied.
_LONG_ENOUGH = 4

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
    "suffix_beyond_tail",
    "match_share",
    "match_weight",
    "left_to_copy",
    "pairs_8",
    "pairs_16",
    "pairs_32",
    "pairs_64",
    "triples_16",
    "triples_32",
    "triples_64",
    "triples_128",
    "overlap_16",
    "overlap_64",
    "not_in_tail",
)
"""Names of the columns that ``block_features`` can return, in order; LensNet's configuration records which it reads."""


def block_features(
    ids: npt.NDArray[np.uint32],
    fill: npt.NDArray[np.uint8],
    query: IntArray,
    *,
    distance: IntArray,
    same_document: npt.NDArray[np.bool_],
    names: Sequence[str] = FEATURES,
) -> FloatArray:
    """Features float32 [k, F] of blocks ``ids`` [k, 32] for the newest tokens ``query`` [q], in the order of ``names``.

    ``distance`` int64 [k]: tokens from the block's start to the cursor; ``same_document`` bool [k].
    """
    tokens = np.where(np.arange(BLOCK) < fill[:, None], ids.astype(np.int64), _NOTHING)
    rarity, first = inverse_frequency(tokens), _first_occurrence(tokens)
    found = {
        **_matches(tokens, query, distance),
        **_shared(tokens, query, rarity, first),
        "log_distance": np.log2(np.clip(distance, 1, FARTHEST)),
        "rank": np.argsort(np.argsort(distance, kind="stable"), kind="stable") / max(1, len(tokens) - 1),
        "same_document": same_document,
        "distinct": first.sum(axis=1) / BLOCK,
        "rarity": np.where(tokens >= 0, rarity, 0.0).sum(axis=1) / np.maximum(fill, 1),
    }
    return np.stack([np.asarray(found[name], dtype=np.float32) for name in names], axis=1)


def _matches(tokens: IntArray, query: IntArray, distance: IntArray) -> dict[str, npt.NDArray[Any]]:
    """Where the newest tokens occurred before: how long, how often, how much is left to copy, and whether only here."""
    runs = suffix_runs(tokens, query)
    longest = runs.max(axis=1)
    best = (longest == longest.max(initial=0)) & (longest > 0)
    newest = np.zeros(len(tokens), dtype=np.bool_)
    if best.any():
        newest[np.flatnonzero(best)[np.argmin(distance[best])]] = True
    weight = (np.minimum(runs, _LONG_ENOUGH) ** 2).sum(axis=1)
    # What the raw tail has matched just as long is there to copy from already.
    in_tail = int(suffix_runs(query[None, :-1], query, ends=False).max(initial=0)) if len(query) > 1 else 0
    return {
        "suffix": longest,
        "suffix_is_longest": best,
        "suffix_is_longest_and_newest": newest,
        **{f"count_{length}": np.log1p((runs >= length).sum(axis=1)) for length in (1, 2, 3)},
        "suffix_beyond_tail": np.maximum(longest - in_tail, 0),
        "match_share": weight / max(int(weight.sum()), 1),
        "match_weight": np.log1p(weight),
        "left_to_copy": np.minimum(longest, _LONG_ENOUGH) * (BLOCK - 1 - runs.argmax(axis=1)),
    }


def _shared(
    tokens: IntArray, query: IntArray, rarity: npt.NDArray[np.float64], first: npt.NDArray[np.bool_]
) -> dict[str, npt.NDArray[Any]]:
    """What the block has in common with the newest tokens: tokens, pairs and triples, by how long ago they came up."""
    token, pair, triple = (_age(_grams(tokens, size), _grams(query[None], size)[0]) for size in (1, 2, 3))
    rare = np.where(first, rarity, 0.0)
    return {
        **{f"overlap_{length}": (rare * (token < length)).sum(axis=1) for length in (8, 16, 32, 64, 128)},
        "rarest_shared_8": np.where((token < 8) & (tokens >= 0), rarity, 0.0).max(axis=1),
        **{f"pairs_{length}": (rarity * (pair < length)).sum(axis=1) for length in (8, 16, 32, 64)},
        **{f"triples_{length}": np.log1p((triple < length).sum(axis=1)) for length in (16, 32, 64, 128)},
        "not_in_tail": ((token >= len(query)) & (tokens >= 0)).sum(axis=1) / BLOCK,
    }


def _grams(tokens: IntArray, size: int) -> IntArray:
    """A number for each token and the ``size - 1`` before it, [k, T]; negative where one of them is missing or filling."""
    codes = tokens.copy()
    whole = tokens >= 0
    for back in range(1, min(size, tokens.shape[1] + 1)):
        codes[:, back:] += tokens[:, :-back] << (_TOKEN_BITS * back)
        whole[:, back:] &= tokens[:, :-back] >= 0
        whole[:, :back] = False
    return np.where(whole, codes, _NOTHING)


def _age(grams: IntArray, query: IntArray) -> IntArray:
    """How many tokens ago each of ``grams`` [k, T] last ended in ``query`` [q]: 0 the newest; a large number: never."""
    if not len(query):
        return np.full(grams.shape, _NEVER, dtype=np.int64)
    known, age = np.unique(query[::-1], return_index=True)
    at = np.minimum(np.searchsorted(known, grams), len(known) - 1)
    result: IntArray = np.where((known[at] == grams) & (grams >= 0), age[at], _NEVER)
    return result


def suffix_runs(tokens: IntArray, query: IntArray, *, ends: bool = True) -> npt.NDArray[np.int64]:
    """How many of the newest query tokens end at each place of a row of T tokens: int64 [k, T].

    With ``ends`` the last place never counts: what would follow there lies outside the block.
    """
    runs = np.zeros(tokens.shape, dtype=np.int64)
    alive = np.ones(tokens.shape, dtype=np.bool_)
    for back in range(min(LONGEST_SUFFIX, len(query))):
        same = tokens == query[-1 - back]
        alive[:, back:] &= same[:, : same.shape[1] - back]
        alive[:, :back] = False
        if not alive.any():
            break
        runs += alive
    if ends:
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
