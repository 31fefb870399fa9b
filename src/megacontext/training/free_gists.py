"""Gists that gradient descent may move: what they are measured in, and how large they may get.

Shapes: n items, N blocks, g vectors per gist, W numbers of a vector, R entries, H lookup heads, c head width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from megacontext.engine.slot_reader import GistEntries
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.kv_memory import KeyValueLayout


class GistSpace(Protocol):
    """One kind of gists: free numbers of about unit size, and back."""

    def free(self, gists: Tensor) -> Tensor:
        """From gists [..., W] to numbers of about unit size."""
        ...

    def gists(self, free: Tensor) -> Tensor:
        """Gists [..., W] that are no larger than those that an encoder makes. Differentiable."""
        ...

    def logits(self, gists: Tensor, ids: Tensor, places: Tensor, last: int) -> Tensor:
        """Logits [B, last, V] behind raw tokens ``ids`` int64 [B, T] after gists [B, N, g, W]; ``places`` int64 [N·g + T]."""
        ...


def space_of(base: BaseLM, encoder: GistEncoder, made: Tensor) -> GistSpace:
    """Of the gists that ``encoder`` makes, of which ``made`` [..., W] are some."""
    if encoder.layout is None:
        return EmbeddingSpace(base)
    return KeyValueSpace(base, encoder.layout, made)


class EmbeddingSpace:
    """Vectors of the base's embedding space, their root mean square at most that of tokens."""

    def __init__(self, base: BaseLM) -> None:
        self._base, self._rms = base, base.embedding_rms

    def free(self, gists: Tensor) -> Tensor:
        """See ``GistSpace``: in units of the token RMS, so that a step size means the same for every base."""
        return gists / self._rms

    def gists(self, free: Tensor) -> Tensor:
        """See ``GistSpace``."""
        return bounded(free, 1.0) * self._rms

    def logits(self, gists: Tensor, ids: Tensor, places: Tensor, last: int) -> Tensor:
        """See ``GistSpace``."""
        base = self._base
        embeds = torch.cat([gists.flatten(1, 2).to(base.dtype), base.embed(ids)], dim=1)
        positions = places.to(base.device).expand(len(ids), -1)
        return base.forward(embeds, positions, logits_from=embeds.shape[1] - last).logits


class KeyValueSpace:
    """Keys and values of lookup heads, each no longer than the longest that the encoder made."""

    def __init__(self, base: BaseLM, layout: KeyValueLayout, made: Tensor) -> None:
        base.enable_lookup()
        self._base, self._layout = base, layout
        self._entries = GistEntries(base, layout)
        keys, values, _ = layout.unpack(made)
        # Of keys and of values, the largest root mean square [1, 1, 1] of an entry.
        self._limits = [part.square().mean(-1).amax().sqrt() for part in (keys, values)]

    def free(self, gists: Tensor) -> Tensor:
        """See ``GistSpace``."""
        keys, values, scores = self._layout.unpack(gists)
        return self._layout.pack(keys / self._limits[0], values / self._limits[1], scores)

    def gists(self, free: Tensor) -> Tensor:
        """See ``GistSpace``."""
        keys, values, scores = self._layout.unpack(free)
        return self._layout.pack(bounded(keys, 1.0) * self._limits[0], bounded(values, 1.0) * self._limits[1], scores)

    def logits(self, gists: Tensor, ids: Tensor, places: Tensor, last: int) -> Tensor:
        """See ``GistSpace``."""
        count = gists.shape[1] * gists.shape[2]
        stored = self._entries.entries_of(gists.flatten(1, 2), places[None, :count].expand(len(ids), -1))
        memory = self._entries.seen_by(stored, torch.ones(1, 1, count, dtype=torch.bool))
        positions = places[count:].to(self._base.device).expand(len(ids), -1)
        return self._base.forward(self._base.embed(ids), positions, logits_from=ids.shape[1] - last, memory=memory).logits


def bounded(vectors: Tensor, rms: float) -> Tensor:
    """Vectors [..., d] of a root mean square of at most ``rms``: longer ones are scaled down, others left alone."""
    own = vectors.square().mean(dim=-1, keepdim=True).clamp_min(1e-12).sqrt()
    return vectors * (rms / own).clamp_max(1.0)
