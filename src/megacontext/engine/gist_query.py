"""A typed query as gists, and how alike gists of either kind are: what `index.gists` needs of the models.

Embedded gists are their vectors. The entries of key/value gists are the pairs of key and value that they keep, over all
lookup heads: keys say what stands before a token, values what it is, and both count the same.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from megacontext.core import BLOCK
from megacontext.engine.bundle import Bundle
from megacontext.engine.gist_builder import GistBuilder
from megacontext.index.gists import F16, F32, Entries, unit, vectors
from megacontext.models.kv_memory import KeyValueLayout


def entries_of(layout: KeyValueLayout | None) -> Entries:
    """How gists of this layout (None: embedded ones) become unit vectors."""
    return vectors if layout is None else partial(_pairs, layout)


def encoded(bundle: Bundle, ids: NDArray[np.int64]) -> F32:
    """The entries [q, w] of a query's token ids [n], by the bundle's GistNet, in blocks of 32."""
    assert bundle.gists is not None
    count = -(-len(ids) // BLOCK)
    blocks, fill = np.zeros((count, BLOCK), np.uint32), np.full(count, BLOCK, np.uint8)
    blocks.ravel()[: len(ids)] = ids
    fill[-1:] = len(ids) - BLOCK * (count - 1)
    gists = GistBuilder(bundle.base, bundle.gists).encode_blocks(blocks, fill)
    entries = entries_of(bundle.gists.layout)(gists)
    flat = entries.reshape(-1, entries.shape[-1])
    there: F32 = flat[flat.any(axis=-1)]
    return there


def _pairs(layout: KeyValueLayout, gists: F16) -> F32:
    keys, values, _ = layout.unpack(torch.from_numpy(gists.copy()).float())
    # [k, g, R, H, c]: the entries of all vectors of a node together, the heads of an entry as one vector.
    parts = [unit(part.flatten(3).flatten(1, 2).numpy()) for part in (keys, values)]
    return unit(np.concatenate(parts, axis=-1))
