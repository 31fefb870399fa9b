"""The gist vectors of items, and the vectors that stand in their places as controls.

Shapes: N complete blocks of an item, g vectors a gist, d width of the base.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megacontext.core import BLOCK
from megacontext.errors import ModelMismatch
from megacontext.evaluation.items import IntArray, Items
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.gist_baselines import MeanPoolGist

F16 = npt.NDArray[np.float16]
PIECE = 64
"""Blocks that are embedded at a time."""


class GistBank:
    """Makes gists of items on demand and keeps them; blocks with the same tokens are encoded once."""

    def __init__(self, items: Items, base: BaseLM, encoder: GistEncoder) -> None:
        self.items, self.base, self.encoder = items, base, encoder
        made_for = getattr(getattr(encoder, "config", None), "base_fingerprint", "")
        if made_for and made_for != base.fingerprint:
            raise ModelMismatch(f"this GistNet was trained for the base {made_for[:12]}, not for {base.fingerprint[:12]}")
        self._known: dict[bytes, F16] = {}
        self._nodes: dict[tuple[int, int], F16] = {}

    def __call__(self, row: int, lod: int = 1) -> F16:
        """Gists float16 [N, g, d] of the complete nodes of one level of an item, counted from its first token."""
        if (row, lod) not in self._nodes:
            self._nodes[row, lod] = self._blocks(row) if lod == 1 else self._parents(self(row, lod - 1), lod)
        return self._nodes[row, lod]

    def _blocks(self, row: int) -> F16:
        ids = blocks_of(self.items.ids[row])
        keys = [block.tobytes() for block in ids]
        new = {key: at for at, key in enumerate(keys) if key not in self._known}
        rows = np.fromiter(new.values(), dtype=np.int64, count=len(new))
        for start in range(0, len(rows), PIECE):
            piece = rows[start : start + PIECE]
            self._known.update(zip((keys[at] for at in piece), encode_blocks(ids[piece], self.base, self.encoder), strict=True))
        return np.stack([self._known[key] for key in keys])

    def _parents(self, children: F16, lod: int) -> F16:
        count = len(children) // BLOCK
        slots = torch.from_numpy(children[: count * BLOCK].astype(np.float32)).reshape(count, -1, children.shape[-1])
        mask = torch.ones(slots.shape[:2], dtype=torch.bool)
        return self.encoder.encode_canonical(slots, mask, lod).numpy()


def blocks_of(ids: IntArray) -> IntArray:
    """The complete blocks of ``ids`` int64 [tokens]: int64 [N, 32]."""
    count = len(ids) // BLOCK
    return ids[: count * BLOCK].reshape(count, BLOCK)


def encode_blocks(blocks: IntArray, base: BaseLM, encoder: GistEncoder) -> F16:
    """LOD1 gists float16 [N, g, d] of ``blocks`` int64 [N, 32], as ingest makes them."""
    with torch.no_grad():
        embedded = base.embed(torch.from_numpy(blocks))
    return encoder.encode_canonical(embedded, torch.ones(blocks.shape, dtype=torch.bool), 1).numpy()


def noise_like(true: F16, seed: int) -> F16:
    """Random vectors with the norms of ``true`` [..., d]."""
    scale = true.astype(np.float32)
    drawn = np.random.default_rng(seed).standard_normal(true.shape).astype(np.float32)
    drawn *= np.linalg.norm(scale, axis=-1, keepdims=True) / np.linalg.norm(drawn, axis=-1, keepdims=True)
    return drawn.astype(np.float16)


def mean_vectors(children: Tensor, base: BaseLM, vectors: int, level: int) -> F16:
    """The means of ``vectors`` equal parts of children float [N, S, d], at the base's scale: float16 [N, g, d]."""
    pool = MeanPoolGist(base.width, base.embedding_rms)
    parts = [
        pool.encode_canonical(part.cpu(), torch.ones(part.shape[:2], dtype=torch.bool), level)
        for part in torch.tensor_split(children, vectors, dim=1)
    ]
    return torch.cat(parts, dim=1).numpy()


def mean_gists(blocks: IntArray, base: BaseLM, vectors: int) -> F16:
    """The mean of each block's token embeddings (of ``vectors`` equal parts of it): float16 [N, g, d]."""
    with torch.no_grad():
        return mean_vectors(base.embed(torch.from_numpy(blocks)).float(), base, vectors, 1)


def token_counts(items: Items, vocab_size: int) -> IntArray:
    """How often each token occurs in the far contexts of all items, int64 [V]: what is rare where we measure."""
    return np.bincount(items.ids[:, : items.far].ravel(), minlength=vocab_size).astype(np.int64)


def rarest_tokens(blocks: IntArray, counts: IntArray, vectors: int) -> IntArray:
    """The ``vectors`` rarest tokens of each block, in its own order: int64 [N, g].

    Among equally rare ones the higher id (byte-pair ids are in order of frequency), then the later place.
    """
    order = np.lexsort((blocks, -counts[blocks]), axis=1)[:, -vectors:]
    return np.take_along_axis(blocks, np.sort(order, axis=1), axis=1)


def rarest_gists(blocks: IntArray, base: BaseLM, vectors: int, counts: IntArray) -> F16:
    """Embeddings of the rarest tokens of each block, as the base knows them: float16 [N, g, d]."""
    with torch.no_grad():
        found = base.embed(torch.from_numpy(rarest_tokens(blocks, counts, vectors)))
    return found.float().cpu().numpy().astype(np.float16)


VectorsOf = Callable[[int], F16]
"""From the number of an item to the vectors [N, g, d] that stand in the places of its gists."""
