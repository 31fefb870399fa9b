"""Banded windows (``training.band``) behind key/value gists: what a gist keeps is taken from the same pass.

A raw token sees the raw tokens of its own group before it, and in lookup heads the kept tokens of all blocks before the
group. Their keys and values are those that the pass has just computed for them, turned to the place of their gist: no block
is read twice, and gradients reach everything. In a memory, gists come from a pass over each block alone, which differs by
what a block's tokens would have seen before it; in lookup heads that is next to nothing (``docs/log.md``).

Shapes: B rows, N blocks, M gisted blocks, R kept tokens a block, H lookup heads, c head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from megacontext.core.node import BLOCK
from megacontext.engine.slot_reader import GistEntries
from megacontext.models.base_lm import BaseLM
from megacontext.models.kv_gistnet import KeyValueGistNet
from megacontext.models.kv_memory import StoredMemory
from megacontext.models.rotary import Rotary
from megacontext.training.band import Bands


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What gists keep: ``places`` int64 [B, M, g·R] in each block, ascending. ``gate`` float of the same shape is 0 and stands
    in the attention of lookup heads; through it gradients reach the scores."""

    places: Tensor
    gate: Tensor


class BandMemory:
    """A ``Memory`` made of the pass that reads it."""

    def __init__(
        self, net: KeyValueGistNet, rotary: Rotary, chosen: Kept, bands: Bands, farther: StoredMemory | None = None
    ) -> None:
        self.layout = net.layout
        self._farther = farther
        self._gains = net.gains
        vectors, stride = net.vectors, net.config.position_stride
        self._rotary = rotary
        kept = chosen.places
        self._gate = chosen.gate.flatten(1)[:, None, None]
        first = torch.arange(bands.gisted, device=kept.device)[:, None] * BLOCK
        self._token = (kept + first).flatten(1)
        start = torch.from_numpy(bands.group_start()).repeat_interleave(BLOCK).to(kept.device)
        self._raw = start * vectors * stride + torch.arange(len(start), device=kept.device) - start * BLOCK
        # A gist's g vectors take g places; its entries are divided among them in order.
        vector = torch.arange(kept.shape[2], device=kept.device) * vectors // kept.shape[2]
        block = torch.arange(bands.gisted, device=kept.device)
        self._gist = ((block[:, None] * vectors + vector) * stride).flatten()
        self._sees = block.repeat_interleave(kept.shape[2])[None] < start[:, None]
        ends = [*bands.starts[1:].tolist(), bands.blocks]
        self.stretches = [(end - first) * BLOCK for first, end in zip(bands.starts.tolist(), ends, strict=True)]
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
        bias = bias.masked_fill(~self._sees, torch.finfo(keys.dtype).min)[None, None] + self._gate.to(keys.dtype)
        key_gain, value_gain = self._gains
        near = key_gain * self._rotary.put_on(plain, self._gist[None]), value_gain * values[:, heads].gather(2, at)
        if self._farther is None:
            return *near, bias
        far_keys, far_values, far_bias = self._farther.read(layer, keys, values)
        rows = max(len(far_bias), len(bias))
        bias = torch.cat([part.expand(rows, -1, bias.shape[2], -1) for part in (far_bias, bias)], dim=-1)
        return torch.cat([far_keys, near[0]], dim=2), torch.cat([far_values, near[1]], dim=2), bias


def draw_kept(
    net: KeyValueGistNet, embeds: Tensor, ids: Tensor, gisted: int, *, noise: float, rng: np.random.Generator
) -> Kept:
    """What gists of the first ``gisted`` blocks of ``ids`` int64 [B, N·32] keep.

    ``noise`` scales Gumbel noise on the scores (nats), so that a base meets more choices than one, and a network learns about
    those that it would not make. Gradients take the hard choice for a soft one around the last score that is kept
    (straight through: Bengio et al. 2013, https://arxiv.org/abs/1308.3432).
    """
    rows = len(ids)
    blocks, each = (part[:, : gisted * BLOCK].reshape(rows * gisted, BLOCK, *part.shape[2:]) for part in (ids, embeds))
    scores = net.scores(each.detach(), blocks, torch.ones_like(blocks, dtype=torch.bool))
    if noise:
        scores = scores + noise * torch.from_numpy(rng.gumbel(size=tuple(scores.shape))).to(scores)
    most = min(net.vectors * net.config.entries, BLOCK)
    places = scores.topk(most, dim=1).indices.sort(dim=1).values
    best = scores.gather(1, places)
    margin = nn.functional.logsigmoid(best - best.detach().amin(dim=1, keepdim=True))
    return Kept(places=places.view(rows, gisted, most), gate=(margin - margin.detach()).view(rows, gisted, most))


def farther_memory(base: BaseLM, net: KeyValueGistNet, ids: Tensor) -> StoredMemory:
    """Gists of the blocks ``ids`` int64 [B, m·32] that stand before a row, as a memory would have them: each block read alone,
    its vectors at the places before the row's first. No gradients reach them."""
    blocks = ids.reshape(-1, BLOCK)
    base.enable_lookup()
    with torch.no_grad():
        gists = net.encode_together(base, blocks, torch.ones_like(blocks, dtype=torch.bool)).view(len(ids), -1, net.width)
        places = torch.arange(-gists.shape[1], 0) * net.config.position_stride
        return GistEntries(base, net.layout).entries_of(gists, places.expand(len(ids), -1))


def lookup_band_logits(
    base: BaseLM, net: KeyValueGistNet, embeds: Tensor, kept: Kept, bands: Bands, farther: StoredMemory | None = None
) -> Tensor:
    """Logits [B, N·32, V] behind every raw token of ``embeds`` [B, N·32, d], as ``band_logits``; ``farther`` is seen by all.

    Differentiable.
    """
    base.enable_lookup()
    memory = BandMemory(net, base.rotary, kept, bands, farther)
    positions = memory.positions.expand(len(embeds), -1)
    anything = bands.gisted or farther is not None
    return base.forward(embeds, positions, mask=memory.allow, memory=memory if anything else None).logits
