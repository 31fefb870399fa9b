"""Banded windows (``training.band``) behind key/value gists: what a gist keeps is taken from the same pass.

A raw token sees the raw tokens of its own group before it, and in lookup heads the kept tokens of all blocks before the
group. Their keys and values are those that the pass has just computed for them, turned to the place of their gist: no block
is read twice, and gradients reach everything. In a memory, gists come from a pass over each block alone, which differs by
what a block's tokens would have seen before it; in lookup heads that is next to nothing (``docs/log.md``).

Shapes: B rows, N blocks, M gisted blocks, R kept tokens a block, H lookup heads, c head width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from megacontext.core.node import BLOCK
from megacontext.models.base_lm import BaseLM
from megacontext.models.kv_gistnet import KeyValueGistNet
from megacontext.models.kv_memory import KeyValueLayout
from megacontext.models.rotary import Rotary
from megacontext.training.band import Bands


class BandMemory:
    """A ``Memory`` made of the pass that reads it; ``kept`` int64 [B, M, R] places in each gisted block."""

    def __init__(
        self, layout: KeyValueLayout, rotary: Rotary, kept: Tensor, bands: Bands, *, vectors: int, stride: int
    ) -> None:
        self.layout = layout
        self._rotary = rotary
        first = torch.arange(bands.gisted, device=kept.device)[:, None] * BLOCK
        self._token = (kept + first).flatten(1)
        start = torch.from_numpy(bands.group_start()).repeat_interleave(BLOCK).to(kept.device)
        self._raw = start * vectors * stride + torch.arange(len(start), device=kept.device) - start * BLOCK
        # A gist's g vectors take g places; its entries are divided among them in order.
        vector = torch.arange(kept.shape[2], device=kept.device) * vectors // kept.shape[2]
        block = torch.arange(bands.gisted, device=kept.device)
        self._gist = ((block[:, None] * vectors + vector) * stride).flatten()
        self._sees = block.repeat_interleave(kept.shape[2])[None] < start[:, None]
        same = start[None] == start[:, None]
        self.allow = same & torch.ones_like(same).tril()

    @property
    def positions(self) -> Tensor:
        """Of the raw tokens, int64 [N·32]."""
        return self._raw

    def read(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Memory``."""
        heads = self.layout.heads_of(layer)
        at = self._token[:, None, :, None].expand(-1, len(heads), -1, keys.shape[-1])
        plain = self._rotary.take_off(keys[:, heads].gather(2, at), self._raw[self._token])
        bias = torch.zeros(self._sees.shape, dtype=keys.dtype, device=keys.device)
        bias = bias.masked_fill(~self._sees, torch.finfo(keys.dtype).min)[None, None]
        return self._rotary.put_on(plain, self._gist[None]), values[:, heads].gather(2, at), bias


def draw_kept(
    net: KeyValueGistNet, embeds: Tensor, ids: Tensor, gisted: int, *, noise: float, rng: np.random.Generator
) -> Tensor:
    """Which tokens of the first ``gisted`` blocks are kept: places int64 [B, M, g·R], ascending, from ``ids`` int64 [B, N·32].

    ``noise`` scales Gumbel noise on the scores (nats), so that a base meets more choices than one.
    """
    rows = len(ids)
    blocks, each = (part[:, : gisted * BLOCK].reshape(rows * gisted, BLOCK, *part.shape[2:]) for part in (ids, embeds))
    with torch.no_grad():
        scores = net.scores(each, blocks, torch.ones_like(blocks, dtype=torch.bool))
    if noise:
        scores = scores + noise * torch.from_numpy(rng.gumbel(size=tuple(scores.shape))).to(scores)
    most = min(net.vectors * net.config.entries, BLOCK)
    return scores.topk(most, dim=1).indices.sort(dim=1).values.view(rows, gisted, most)


def lookup_band_logits(base: BaseLM, net: KeyValueGistNet, embeds: Tensor, kept: Tensor, bands: Bands) -> Tensor:
    """Logits [B, N·32, V] behind every raw token of ``embeds`` [B, N·32, d], as ``band_logits``.

    ``kept`` int64 [B, M, g·R] as from ``draw_kept``. Differentiable.
    """
    base.enable_lookup()
    memory = BandMemory(net.layout, Rotary(base.model), kept, bands, vectors=net.vectors, stride=net.config.position_stride)
    positions = memory.positions.expand(len(embeds), -1)
    return base.forward(embeds, positions, mask=memory.allow, memory=memory if bands.gisted else None).logits
