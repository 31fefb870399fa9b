"""How much of a block's own text is in its gist: a small decoder from gists to the 32 tokens.

It only measures (and trains) gists; the runtime never decodes from them. Shapes: n blocks, g vectors per gist, d
width of the base, h inner width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from megacontext.core.node import BLOCK
from megacontext.errors import ConfigError, InvalidInput
from megacontext.models.blocks import EncoderBlock, rope_angles
from megacontext.models.gistnet import GistNet
from megacontext.models.place_readout import PlaceSum
from megacontext.models.pretrained import PretrainedNet

FOLDER = "reconstruction"
"""Where a head lies inside the folder of the GistNet that it reads."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """``width`` d of the base, ``input_rms`` of its gists, ``vectors`` g; ``base_fingerprint`` and ``gist_fingerprint``
    of the models whose embeddings and gists it was trained on."""

    width: int
    input_rms: float
    vectors: int = 1
    hidden: int = 256
    heads: int = 4
    layers: int = 2
    mlp_ratio: float = 2.0
    base_fingerprint: str = ""
    gist_fingerprint: str = ""

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads):
            raise ConfigError(f"hidden ({self.hidden}) must be a multiple of twice the heads ({self.heads})")
        if min(self.width, self.vectors, self.layers) < 1 or self.input_rms <= 0 or self.mlp_ratio <= 0:
            raise ConfigError("width, vectors, layers, input_rms and mlp_ratio must be positive")


class ReconstructionHead(PretrainedNet):
    """Each of 32 places reads the gist through a matrix of its own; a small transformer makes the places agree.

    The output is a vector in the base's embedding space, so that the logits are products with the base's own, frozen
    embeddings. ``common`` int64 [32] holds the most frequent token of each place in the training text: the guess that
    needs no gist.
    """

    kind: ClassVar[str] = "megacontext-reconstruction"
    config_class: ClassVar[type[ReconstructionConfig]] = ReconstructionConfig
    common: Tensor

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__(config)
        self.config = config
        hidden = config.hidden
        # The same for all places in the beginning: what is read is a bag of tokens.
        start = torch.eye(config.width, hidden).repeat(config.vectors, 1)
        self.unbind = nn.Parameter(start.repeat(BLOCK, 1, 1))
        self.place = nn.Parameter(torch.randn(BLOCK, hidden) * 0.05)
        self.blocks = nn.ModuleList(EncoderBlock(hidden, config.heads, config.mlp_ratio) for _ in range(config.layers))
        for block in self.blocks:
            _silence(block)
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.out = nn.Linear(hidden, config.width)
        # An embedding that is read back cleanly scores 1 against itself in units of its squared norm.
        nn.init.eye_(self.out.weight)
        self.out.weight.data.div_(config.input_rms * config.width**0.5)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("common", torch.zeros(BLOCK, dtype=torch.int64))

    @torch.no_grad()
    def prime(self, gistnet: GistNet) -> None:
        """Start as the inverse of what a fresh ``PlaceSum`` does; no change for other read-outs."""
        readout = gistnet.readout
        if isinstance(readout, PlaceSum) and self.config.hidden >= self.config.width:
            self.unbind.zero_()
            self.unbind[:, :, : self.config.width] = readout.bind.mT

    def forward(self, gists: Tensor) -> Tensor:
        """float [n, g, d] to vectors [n, 32, d] in the base's embedding space; differentiable."""
        if gists.shape[1:] != (self.config.vectors, self.config.width):
            raise InvalidInput(f"gists must be [n, {self.config.vectors}, {self.config.width}], not {list(gists.shape)}")
        read = gists.to(self.dtype).flatten(1) / self.config.input_rms
        states = torch.einsum("nd,jdh->njh", read, self.unbind) + self.place
        mask = states.new_zeros(1, 1, 1, BLOCK)
        cos, sin = rope_angles(BLOCK, self.config.hidden // self.config.heads, states.device)
        for block in self.blocks:
            states = block(states, mask, cos, sin)
        result: Tensor = self.out(self.norm(states))
        return result

    def logits(self, gists: Tensor, embedding: Tensor) -> Tensor:
        """Logits [n, 32, V] of the tokens behind gists [n, g, d]; ``embedding`` [V, d] is the base's."""
        logits: Tensor = self(gists) @ embedding.T
        return logits


def _silence(block: nn.Module) -> None:
    """A residual block that adds nothing until it is trained."""
    assert isinstance(block, EncoderBlock)
    nn.init.zeros_(block.attention.out.weight)
    nn.init.zeros_(block.mlp.down.weight)
    nn.init.zeros_(block.mlp.down.bias)
