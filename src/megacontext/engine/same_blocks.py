"""Which blocks of a text were there before: what a new version of a document takes over from the one before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megacontext.core import BLOCK
from megacontext.engine.gist_builder import I64, U8, U32


def same_blocks(ids: U32, fill: U8, old_ids: U32, old_fill: U8) -> I64:
    """For each block [n, 32] the index of an old one with the same real tokens, int64 [n]; -1 where there is none."""
    new, old = _keys(ids, fill), _keys(old_ids, old_fill)
    order = np.argsort(old)
    at = np.searchsorted(old[order], new)
    found = order[np.minimum(at, len(old) - 1)]
    return np.where(old[found] == new, found, -1)


def _keys(ids: U32, fill: U8) -> NDArray[np.void]:
    """Each block as one item that can be sorted: its real tokens and how many they are."""
    real = np.where(np.arange(BLOCK) < fill[:, None], ids, 0)
    rows = np.concatenate([real, fill[:, None]], axis=1).astype(">u4")
    return np.ascontiguousarray(rows).view(f"V{rows.shape[1] * 4}")[:, 0]
