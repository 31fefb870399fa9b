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
from megacontext.models.kv_gistnet import KeyValueGistNet
from megacontext.models.kv_memory import KeyValueLayout

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
    return encoder.encode_blocks(base, torch.from_numpy(blocks), torch.ones(blocks.shape, dtype=torch.bool)).numpy()


def noise_like(true: F16, seed: int, layout: KeyValueLayout | None = None) -> F16:
    """Random vectors with the norms of ``true`` [..., W]; with a ``layout``, keys and values of the norms of the true ones."""
    scale = true.astype(np.float32)
    drawn = np.random.default_rng(seed).standard_normal(true.shape).astype(np.float32)
    if layout is None:
        return _with_norms(drawn, scale).astype(np.float16)
    numbers = layout.width - layout.entries
    parts = (*true.shape[:-1], -1, layout.head_width)
    drawn[..., :numbers] = _with_norms(drawn[..., :numbers].reshape(parts), scale[..., :numbers].reshape(parts)).reshape(
        *true.shape[:-1], numbers
    )
    drawn[..., numbers:] = scale[..., numbers:]
    return drawn.astype(np.float16)


def _with_norms(drawn: npt.NDArray[np.float32], true: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    scaled: npt.NDArray[np.float32] = drawn * (
        np.linalg.norm(true, axis=-1, keepdims=True) / np.linalg.norm(drawn, axis=-1, keepdims=True)
    )
    return scaled


def mean_gists(blocks: IntArray, base: BaseLM, encoder: GistEncoder) -> F16:
    """What averaging says of ``blocks`` int64 [N, 32]: the mean embedding of each of g equal parts, or as many mean keys and
    values as a gist has entries. float16 [N, g, W]."""
    ids = torch.from_numpy(blocks)
    live = torch.ones(ids.shape, dtype=torch.bool)
    if isinstance(encoder, KeyValueGistNet):
        return encoder.mean_of_blocks(base, ids, live).numpy()
    with torch.no_grad():
        return _mean_vectors(base.embed(ids).float(), base, encoder.vectors, 1)


def mean_of_children(children: Tensor, base: BaseLM, encoder: GistEncoder, level: int) -> F16:
    """The means of g equal parts of children float [N, S, W]: float16 [N, g, W]."""
    if encoder.layout is None:
        return _mean_vectors(children, base, encoder.vectors, level)
    parts = torch.tensor_split(children, encoder.vectors, dim=1)
    return torch.stack([part.mean(dim=1) for part in parts], dim=1).half().numpy()


def _mean_vectors(children: Tensor, base: BaseLM, vectors: int, level: int) -> F16:
    pool = MeanPoolGist(base.width, base.embedding_rms)
    parts = [
        pool.encode_canonical(part.cpu(), torch.ones(part.shape[:2], dtype=torch.bool), level)
        for part in torch.tensor_split(children, vectors, dim=1)
    ]
    return torch.cat(parts, dim=1).numpy()


def token_counts(items: Items, vocab_size: int) -> IntArray:
    """How often each token occurs in the far contexts of all items, int64 [V]: what is rare where we measure."""
    return np.bincount(items.ids[:, : items.far].ravel(), minlength=vocab_size).astype(np.int64)


def rarest_places(blocks: IntArray, counts: IntArray, vectors: int) -> IntArray:
    """Where the ``vectors`` rarest tokens of each block stand, ascending: int64 [N, g].

    Among equally rare ones the higher id (byte-pair ids are in order of frequency), then the later place.
    """
    return np.sort(np.lexsort((blocks, -counts[blocks]), axis=1)[:, -vectors:])


VectorsOf = Callable[[int], F16]
"""From the number of an item to the vectors [N, g, d] that stand in the places of its gists."""
