"""Windows in which spans are replaced by gists, as training batches.

All rows of a batch share one *pattern* (which blocks stay raw, which become LOD1, which 32 become one
LOD2), so that a batch is two gathers and no loop over entries.

Easier windows, for training alone, have gists that stand for fewer tokens: the pattern then counts spans of
4, 8 or 16 tokens, each encoded as a block with that many live children and the rest masked.

To replace a span is to mask it: what follows computes exactly what it would compute if span and gist both stood in the
window and attention to the span were forbidden, at a fraction of the cost.

Shapes: B rows, N spans (blocks, unless the pattern says otherwise), s tokens a span, n slots, d width, P vectors in
the pool that slots are gathered from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megacontext.core.node import BLOCK
from megacontext.models.base_lm import BaseLM
from megacontext.models.gistnet import GistNet
from megacontext.models.positions import Absolute, PositionStrategy, WindowRanks

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """``lod`` int64 [N]: 0 raw, 1 its own gist, 2 part of an LOD2 span (32 aligned blocks at a time).

    ``span`` s: tokens that each stands for, a divisor of 32; LOD2 only at 32.
    """

    lod: IntArray
    span: int = BLOCK

    def __post_init__(self) -> None:
        if self.span < 1 or BLOCK % self.span:
            raise ValueError(f"a span must be a divisor of {BLOCK} tokens, not {self.span}")
        spans = np.flatnonzero(self.lod == 2)
        if len(spans) and self.span != BLOCK:
            raise ValueError(f"LOD2 is made of gists of {BLOCK} tokens, not of {self.span}")
        if len(spans) % BLOCK or (spans.reshape(-1, BLOCK)[:, 0] % BLOCK).any():
            raise ValueError("LOD2 replaces 32 aligned blocks at a time")

    @property
    def tokens(self) -> int:
        """Tokens of a row, N·s."""
        return len(self.lod) * self.span

    @property
    def encoded(self) -> IntArray:
        """The spans that need an LOD1 gist."""
        return np.flatnonzero(self.lod > 0)

    @property
    def heads(self) -> IntArray:
        """The first block of each LOD2 span."""
        return np.flatnonzero(self.lod == 2)[::BLOCK]

    def slots(self, vectors: int = 1) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """Pool index, first token, end token and (for raw slots) token index else −1; each int64 [n].

        The pool is the raw tokens [N·s], then the LOD1 gists of ``encoded``, then the LOD2 gists, ``vectors`` each.
        """
        encoded, heads = self.encoded, self.heads
        lod1_at = np.cumsum(self.lod > 0) - 1
        raw = (np.flatnonzero(self.lod == 0)[:, None] * self.span + np.arange(self.span)).ravel()
        ones = np.flatnonzero(self.lod == 1)
        node = np.concatenate([lod1_at[ones], len(encoded) + np.arange(len(heads))])
        index = np.concatenate([raw, (self.tokens + node[:, None] * vectors + np.arange(vectors)).ravel()])
        start = np.concatenate([raw, np.concatenate([ones, heads]).repeat(vectors) * self.span])
        stop = np.concatenate([raw + 1, np.concatenate([ones + 1, heads + BLOCK]).repeat(vectors) * self.span])
        token = np.concatenate([raw, np.full(len(node) * vectors, -1)])
        order = np.argsort(start, kind="stable")
        return index[order], start[order], stop[order], token[order]


def draw_pattern(rng: np.random.Generator, *, far: int, tail: int, spans: int, all_gists: float) -> Pattern:
    """``spans`` LOD2 spans, then ``far`` blocks at random detail, then ``tail`` raw blocks.

    With probability ``all_gists`` the whole far part is gists; else each block is with a probability
    drawn from [0.3, 1]. There is always a gist, unless there is no far block.
    """
    keep = 1.0 if rng.random() < all_gists else rng.uniform(0.3, 1.0)
    middle = (rng.random(far) < keep).astype(np.int64)
    if far and not spans and not middle.any():
        middle[rng.integers(far)] = 1
    return Pattern(lod=np.concatenate([np.full(spans * BLOCK, 2), middle, np.zeros(tail, dtype=np.int64)]))


def slot_positions(start: IntArray, stop: IntArray, context_length: int, *, absolute: bool, stride: int = 1) -> IntArray:
    """Positions int64 [n] of the slots: absolute where asked for and possible, else window ranks."""
    strategy: PositionStrategy = Absolute() if absolute and stop[-1] <= context_length else WindowRanks(stride)
    return strategy(start, stop, context_length)


def encode_pattern(pattern: Pattern, embeds: Tensor, gistnet: GistNet, live: Tensor | None = None) -> Tensor:
    """Pool [B, P, d] of raw embeddings [B, N·s, d] and the gists that ``pattern`` needs; differentiable.

    ``live`` bool [B, N·s]: tokens that are no filling (None: all of them).
    """
    batch, _, width = embeds.shape
    encoded, heads = pattern.encoded, pattern.heads
    parts = [embeds]
    if len(encoded):
        children, mask = span_children(embeds, encoded, pattern.span, live)
        lod1 = encode_nodes(gistnet, children, 1, mask)
        parts.append(lod1.flatten(1, 2))
        if len(heads):
            at = torch.from_numpy(np.flatnonzero(pattern.lod[encoded] == 2))
            children = lod1[:, at].reshape(batch, len(heads), BLOCK * gistnet.vectors, width)
            parts.append(encode_nodes(gistnet, children, 2).flatten(1, 2))
    return torch.cat(parts, dim=1)


def span_children(embeds: Tensor, at: IntArray, span: int, live: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The tokens of spans ``at`` int64 [M] as blocks: children [B, M, 32, d] and which of them are live, bool [B, M, 32].

    ``embeds`` [B, N·s, d] and ``live`` bool [B, N·s] (None: all). A span that is shorter than a block is filled up
    with masked children behind it.
    """
    batch, tokens, width = embeds.shape
    places = torch.from_numpy(at)
    children = embeds.view(batch, -1, span, width)[:, places]
    held = children.new_ones(batch, tokens, dtype=torch.bool) if live is None else live
    mask = held.view(batch, -1, span)[:, places]
    missing = BLOCK - span
    return torch.nn.functional.pad(children, (0, 0, 0, missing)), torch.nn.functional.pad(mask, (0, missing))


def encode_nodes(gistnet: GistNet, children: Tensor, level: int, mask: Tensor | None = None) -> Tensor:
    """Gists [B, M, g, d] of M nodes a row from their children [B, M, S, d]; differentiable.

    ``mask`` bool [B, M, S]: children that are live (None: all of them).
    """
    flat = children.flatten(0, 1)
    mask = flat.new_ones(flat.shape[:2], dtype=torch.bool) if mask is None else mask.flatten(0, 1)
    levels = torch.full((len(flat),), level, dtype=torch.int64, device=flat.device)
    encoded: Tensor = gistnet.encode(flat, mask, levels)
    return encoded.view(*children.shape[:2], gistnet.vectors, -1)


def token_nll(
    base: BaseLM,
    pool: Tensor,
    ids: Tensor,
    pattern: Pattern,
    *,
    absolute: bool,
    scored: int | None = None,
    vectors: int = 1,
    stride: int = 1,
) -> Tensor:
    """NLL (nats) of every raw token that follows another slot, or of the last ``scored``: float [B, m].

    ``ids`` int64 [B, N·s]; ``pool`` as from ``encode_pattern``. The target of a slot is the raw token
    right after its span; slots in front of a gist predict nothing.
    """
    logits, following = token_logits(base, pool, pattern, absolute=absolute, scored=scored, vectors=vectors, stride=stride)
    predicts = following >= 0
    targets = ids[:, following[predicts]]
    return torch.nn.functional.cross_entropy(logits[:, predicts].mT, targets, reduction="none")


def token_logits(
    base: BaseLM,
    pool: Tensor,
    pattern: Pattern,
    *,
    absolute: bool,
    scored: int | None = None,
    vectors: int = 1,
    stride: int = 1,
) -> tuple[Tensor, Tensor]:
    """Logits [B, k, V] of every slot but the last (of the ``scored`` before it), and the token that each predicts,
    int64 [k], −1 for those in front of a gist. ``stride``: positions a gist takes."""
    index, start, stop, token = pattern.slots(vectors)
    positions = slot_positions(start, stop, base.context_length, absolute=absolute, stride=stride)
    embeds = pool[:, torch.from_numpy(index[:-1])]
    first = 0 if scored is None else len(index) - 1 - scored
    logits = base.forward(
        embeds, torch.from_numpy(positions[:-1]).to(pool.device).expand(len(pool), -1), logits_from=first
    ).logits
    return logits, torch.from_numpy(token[1 + first :])
