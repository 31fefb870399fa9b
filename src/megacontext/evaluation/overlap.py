"""Whether items were seen in training: stretches of 32 tokens that the training split holds too.

The training split's blocks of 32 tokens are hashed, and so is every 32-token stretch of an item, at every offset: a
copied document is found wherever it was cut. Rolling polynomial hashes modulo 2^64 (Karp & Rabin 1987). Natural text
shares boilerplate, so an item counts as seen where its shared stretches cover more than ``SEEN`` of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext.core import BLOCK
from megacontext.errors import DatasetError
from megacontext.evaluation.items import Items

_BASE = np.uint64(0x9E3779B97F4A7C15)
SEEN = 0.5
"""Share of an item's tokens from which on it counts as seen in training."""
MOST_SEEN = 0.02
"""Share of seen items from which on the split is no held-out split."""


def block_hashes(ids: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint64]:
    """Hashes uint64 [N] of blocks ``ids`` [N, 32]."""
    total = np.zeros(len(ids), dtype=np.uint64)
    for column in ids.T:
        total = total * _BASE + column.astype(np.uint64) + np.uint64(1)
    return total


def covered(ids: npt.NDArray[np.int64], training: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Share of the tokens of each row of ``ids`` int64 [n, L] that lie in a training block: float64 [n]."""
    length = ids.shape[1]
    known = np.unique(training)
    shares = np.zeros(len(ids))
    if not len(known):
        return shares
    for row, tokens in enumerate(ids):
        stretches = np.lib.stride_tricks.sliding_window_view(tokens, BLOCK)
        hashes = block_hashes(stretches)
        hit = known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes
        inside = np.convolve(hit, np.ones(BLOCK))[:length] > 0
        shares[row] = inside.mean()
    return shares


def without_seen(items: Items, ids: npt.NDArray[np.integer[Any]], fill: npt.NDArray[np.uint8]) -> tuple[Items, dict[str, Any]]:
    """The items that training has not seen, and what was found; training blocks ``ids`` [N, 32], ``fill`` [N] real tokens.

    DatasetError where more than a few items are made of training text: then the split was not kept out.
    """
    shares = covered(items.ids, block_hashes(ids[fill == BLOCK]))
    seen = shares > SEEN
    if seen.sum() > MOST_SEEN * len(items):
        worst = int(items.histories[int(np.argmax(shares))])
        raise DatasetError(
            f"{seen.sum()} of {len(items)} items are made of text that the training split holds (most in history {worst}): "
            "take the validation or test split, or documents that were kept out of training"
        )
    facts = {"checked": True, "items_left_out": int(seen.sum()), "tokens_shared": float(shares[~seen].mean())}
    return items.take(np.flatnonzero(~seen)), facts
