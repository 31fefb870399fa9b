"""Transformer parts that GistNet and LensNet are made of: pre-norm, rotary positions, sdpa,
residual MLPs.

Shapes: B batch, S slots, T slots attended to, H heads, h inner width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROPE_THETA = 10_000.0
EPS = 1e-6


def key_mask(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """bool [B, T] to the additive mask [B, 1, 1, T]; the lowest number rather than -inf, so that a
    row of nothing is no NaN."""
    mask = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    return mask.masked_fill_(~valid, torch.finfo(dtype).min)[:, None, None, :]


def rope_angles(slots: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [S, head_width] of slots 0…S-1, float32."""
    frequencies = ROPE_THETA ** (-torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    angles = torch.arange(slots, device=device, dtype=torch.float32)[:, None] * frequencies[None]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (https://arxiv.org/abs/2104.09864) applied to x [B, H, S, head_width]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-high, low], dim=-1) * sin.to(x.dtype)


class SelfAttention(nn.Module):
    """Bidirectional attention over [B, S, h] with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, slots, width = x.shape
        q, k, v = self.qkv(x).view(batch, slots, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, attn_mask=mask)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, slots, width))
        return result


class CrossAttention(nn.Module):
    """Attention of [B or 1, S, h] to [B, T, h]; cost S·T, without positions of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        batch, slots, width = len(memory), x.shape[1], x.shape[2]
        q = self.q(x).view(len(x), slots, self.heads, -1).transpose(1, 2).expand(batch, -1, -1, -1)
        k, v = self.kv(memory).view(batch, memory.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Written out: with few queries, sdpa on CPU splits the keys between threads by the row's
        # place in the batch, so that a row's result depends on its neighbours in the last bit (seen
        # with torch 2.13, two threads, one query).
        weights = (q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5 + mask).softmax(dim=-1)
        mixed = weights @ v
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, slots, width))
        return result


class Mlp(nn.Module):
    """h → ratio·h → h with GELU."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        inner = max(1, round(width * ratio))
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(F.gelu(self.up(x)))
        return result


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=EPS)
        self.attention = SelfAttention(width, heads)
        self.mlp_norm = nn.RMSNorm(width, eps=EPS)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask, cos, sin)
        result: Tensor = x + self.mlp(self.mlp_norm(x))
        return result
