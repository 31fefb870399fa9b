"""A bi-encoder for dense retrieval: blocks and the newest tokens as vectors, a block as good as their inner product.

Small, over the frozen base's input embeddings: every token and the one before it are projected together, and an attention pool,
one for blocks and one for queries, makes a vector of them. Positive: more alike. It is the arm ``dense`` of ``bench quality``.

Karpukhin et al. 2020, "Dense Passage Retrieval" (https://arxiv.org/abs/2004.04906), for two encoders and their inner product.

Shapes: B windows, n blocks, T tokens of a block, q tokens of a query (oldest first), d width of the base, h inner width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from megacontext.errors import ConfigError, InvalidInput
from megacontext.models.blocks import EPS
from megacontext.models.pretrained import PretrainedNet


@dataclass(frozen=True, kw_only=True)
class BiEncoderConfig:
    """``width`` d of the base; ``hidden`` h; ``query``: most of the newest tokens that are read."""

    width: int
    hidden: int = 48
    query: int = 32
    base_fingerprint: str = ""

    def __post_init__(self) -> None:
        if min(self.width, self.hidden, self.query) < 1:
            raise ConfigError("width, hidden and query must be positive")


class Tower(nn.Module):
    """Tokens [..., T, d] to unit vectors [..., h]."""

    def __init__(self, config: BiEncoderConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=EPS)
        self.project = nn.Linear(2 * config.width, config.hidden)
        self.weigh = nn.Linear(config.hidden, 1)

    def forward(self, embeds: Tensor, bias: Tensor | None = None) -> Tensor:
        x = self.norm(embeds)
        before = nn.functional.pad(x, (0, 0, 1, 0))[..., :-1, :]
        states = nn.functional.silu(self.project(torch.cat([x, before], dim=-1)))
        logits = self.weigh(states)[..., 0]
        weights = (logits if bias is None else logits + bias).softmax(dim=-1)
        pooled: Tensor = (weights[..., None] * states).sum(dim=-2)
        return nn.functional.normalize(pooled, dim=-1)


class BiEncoder(PretrainedNet):
    """Likeness [B, n] of blocks and queries."""

    kind: ClassVar[str] = "megacontext-biencoder"
    config_class: ClassVar[type[BiEncoderConfig]] = BiEncoderConfig

    def __init__(self, config: BiEncoderConfig) -> None:
        super().__init__(config)
        self.config = config
        self.block, self.query = Tower(config), Tower(config)
        self.age = nn.Parameter(torch.zeros(config.query))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, blocks: Tensor, query: Tensor) -> Tensor:
        """Embeddings ``blocks`` float [B, n, T, d] and ``query`` [B, q, d] to logits [B, n]."""
        if blocks.dim() != 4 or query.dim() != 3 or query.shape[1] == 0:
            raise InvalidInput(f"blocks [B, n, T, d] and query [B, q ≥ 1, d], not {list(blocks.shape)} and {list(query.shape)}")
        newest = query[:, -self.config.query :]
        vector = self.query(newest, self.age[-newest.shape[1] :])
        result: Tensor = self.scale.exp() * (self.block(blocks) @ vector[..., None])[..., 0]
        return result
