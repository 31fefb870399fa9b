"""Banded windows: every token of a row is predicted behind gists, in one pass.

A row of N blocks is cut into groups. A raw token sees the raw tokens of its own group before it and the
gists of all blocks before the group, never a raw token of an earlier group: exactly the window that a
session would read there, with everything older collapsed. All groups share one set of gists, so that a row
costs one encoding and one pass for N·32 scored tokens; with one window a row, most of the encoding would be
paid for a short tail.

Slots: the gists of the blocks before the last group, then all raw tokens. Positions are those of window
ranks: a group that starts at block s continues at position s·g·stride.

Shapes: B rows, N blocks, M gisted blocks, g vectors a block, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megacontext.core.node import BLOCK
from megacontext.models.base_lm import BaseLM


@dataclass(frozen=True, kw_only=True)
class Bands:
    """``starts`` int64 [k]: the first block of each group, ascending from 0; ``blocks`` N of a row."""

    starts: npt.NDArray[np.int64]
    blocks: int

    @property
    def gisted(self) -> int:
        """M, the blocks that some group sees as gists."""
        return int(self.starts[-1])

    def group_start(self) -> npt.NDArray[np.int64]:
        """The first block of the group of each block, int64 [N]."""
        return self.starts[np.searchsorted(self.starts, np.arange(self.blocks), side="right") - 1]


def draw_bands(rng: np.random.Generator, *, blocks: int, group: tuple[int, int]) -> Bands:
    """Groups of random size within ``group`` (inclusive, in blocks); the last may be cut short."""
    starts = [0]
    while True:
        following = starts[-1] + int(rng.integers(group[0], group[1] + 1))
        if following >= blocks:
            return Bands(starts=np.array(starts), blocks=blocks)
        starts.append(following)


def band_layout(bands: Bands, vectors: int, stride: int) -> tuple[Tensor, Tensor]:
    """Positions int64 [n] and who may attend to whom bool [n, n], n = M·g + N·32 slots; causal."""
    start = torch.from_numpy(bands.group_start()).repeat_interleave(BLOCK)
    block = torch.arange(bands.blocks).repeat_interleave(BLOCK)
    gist = torch.arange(bands.gisted).repeat_interleave(vectors)
    raw_position = start * vectors * stride + torch.arange(len(block)) - start * BLOCK
    positions = torch.cat([torch.arange(len(gist)) * stride, raw_position])
    sees_gist = torch.cat([torch.arange(len(gist))[None] <= torch.arange(len(gist))[:, None], gist[None] < start[:, None]])
    sees_raw = torch.cat([torch.zeros(len(gist), len(block), dtype=torch.bool), start[None] == start[:, None]])
    allow = torch.cat([sees_gist, sees_raw], dim=1)
    return positions, allow & torch.ones_like(allow).tril()


def band_nll(base: BaseLM, embeds: Tensor, gists: Tensor, ids: Tensor, bands: Bands, *, stride: int = 1) -> Tensor:
    """NLL (nats) of every raw token but the first, of ``ids`` int64 [B, N·32]: float [B, N·32 - 1]."""
    logits = band_logits(base, embeds, gists, bands, stride=stride)
    return torch.nn.functional.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none")


def band_logits(base: BaseLM, embeds: Tensor, gists: Tensor, bands: Bands, *, stride: int = 1) -> Tensor:
    """Logits [B, N·32, V] behind every raw token; each predicts the next one of the row.

    ``embeds`` [B, N·32, d], ``gists`` [B, M, g, d]. The first token of a group is predicted by the last one of the
    group before. ``stride``: positions a gist takes. Differentiable.
    """
    rows, _, vectors, _ = gists.shape
    positions, allow = band_layout(bands, vectors, stride)
    slots = torch.cat([gists.flatten(1, 2), embeds], dim=1)
    first = bands.gisted * vectors
    return base.forward(
        slots,
        positions.to(slots.device).expand(rows, -1),
        logits_from=first,
        mask=allow.to(slots.device),
    ).logits


def needs_far(ids: Tensor, bands: Bands) -> Tensor:
    """Targets that occur in an earlier group but not before them in their own: bool [B, N·32 - 1]."""
    start = torch.from_numpy(bands.group_start()).repeat_interleave(BLOCK).to(ids.device)
    same = ids[:, 1:, None] == ids[:, None, :-1]
    place = torch.arange(len(start) - 1, device=ids.device)
    earlier = start[None, :-1] < start[1:, None]
    near = (start[None, :-1] == start[1:, None]) & (place[None] <= place[:, None])
    return (same & earlier).any(-1) & ~(same & near).any(-1)
