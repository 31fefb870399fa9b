"""A read-out for reconstruction: every place of the block has a matrix of its own.

A sum keeps its terms apart if each is turned by an orthogonal matrix of its own before it is added: turned back by
the same matrix, the wanted term stands out of what looks like noise (Plate 1995, "Holographic reduced
representations", https://doi.org/10.1109/72.377968). So a fresh network can already be read back to about a
sixth of its tokens (32 tokens, 192 dimensions), and what it learns comes on top.

Shapes: B blocks, S children, d width of the base, h inner width, g vectors per block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megacontext.core.node import BLOCK
from megacontext.models.readouts import READOUTS, ReadOut

PLACE_SUM = "place_sum"
"""Its name in a configuration."""


class PlaceSum(ReadOut):
    """The sum over places of a matrix times the original embedding plus another times the block state.

    The first starts as a random rotation into one of the vectors (the j-th of g takes the j-th part of the block), the
    second as zero.
    """

    def __init__(self, width: int, hidden: int, heads: int, vectors: int) -> None:
        super().__init__(width, hidden, heads, vectors)
        turns = torch.linalg.qr(torch.randn(BLOCK, width, width)).Q
        bind = torch.zeros(BLOCK, width, vectors, width)
        places = torch.arange(BLOCK)
        bind[places, :, places * vectors // BLOCK] = turns
        self.bind = nn.Parameter(bind.flatten(2))
        self.add = nn.Parameter(torch.zeros(BLOCK, hidden, vectors * width))

    def forward(self, original: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        batch, slots, width = original.shape
        per_place = -(-slots // BLOCK)
        # Not a product with the mask: what is masked may be NaN.
        live = mask[..., None]
        original, states = torch.where(live, original, 0.0), torch.where(live, states, 0.0)
        pooled = _by_place(original, per_place).flatten(1) @ self.bind[: -(-slots // per_place)].flatten(0, 1)
        pooled = pooled + _by_place(states, per_place).flatten(1) @ self.add[: -(-slots // per_place)].flatten(0, 1)
        return pooled.view(batch, self.vectors, width)


def _by_place(values: Tensor, per_place: int) -> Tensor:
    """[B, S, c] to [B, places, c]: the children that share a place are added up."""
    batch, slots, channels = values.shape
    missing = -slots % per_place
    if missing:
        values = nn.functional.pad(values, (0, 0, 0, missing))
    return values.view(batch, -1, per_place, channels).sum(dim=2)


READOUTS[PLACE_SUM] = PlaceSum
