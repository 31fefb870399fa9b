"""How a block of children becomes g vectors. One class each; ``READOUTS`` maps the names in a
config to them.

What decides is whether the block's *original* embeddings reach the output: a softmax pool over them
carries several times more than a CLS or mean of block states, whatever the loss.

Shapes: B blocks, S children, d width of the base, h inner width, g vectors per block, P prefix
slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megacontext.core.node import BLOCK
from megacontext.models.blocks import CrossAttention, key_mask

# How much more than the others each of several pools looks at its own part of the block in the
# beginning (in logits).
PART_BIAS = 2.0


class ReadOut(nn.Module):
    """Contract: ``forward(original [B, S, d], states [B, P + S, h], mask bool [B, S]) -> [B, g,
    d]``, unscaled; masked children have no influence. ``prefix`` slots are put in front of the
    block before its layers run."""

    def __init__(self, width: int, hidden: int, heads: int, vectors: int) -> None:
        super().__init__()
        self.vectors = vectors

    def prefix(self) -> Tensor | None:
        """[P, h] learned slots, or None."""
        return None

    def forward(self, original: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has to say how it reads a block")


class SoftmaxPool(ReadOut):
    """Learned weights over the original embeddings plus a projection of the block states pooled
    with the same weights.

    Starts as the mean (of the j-th part of the block mostly, for the j-th of several pools): score
    head and projection are zero.
    """

    def __init__(self, width: int, hidden: int, heads: int, vectors: int) -> None:
        super().__init__(width, hidden, heads, vectors)
        self.score = nn.Linear(hidden, vectors)
        self.project = zero_linear(hidden, width)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.place = nn.Parameter(_parts(vectors))

    def forward(self, original: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        per_slot = -(-original.shape[1] // BLOCK)
        place = self.place.repeat_interleave(per_slot, dim=1)[:, : original.shape[1]]
        weights = _softmax(self.score(states).transpose(1, 2) + place, mask)
        pooled: Tensor = weights @ original + self.project(weights @ states)
        return pooled


class MeanReadOut(ReadOut):
    """The mean of the original embeddings plus a projection of the mean of the block states; one
    per vector."""

    def __init__(self, width: int, hidden: int, heads: int, vectors: int) -> None:
        super().__init__(width, hidden, heads, vectors)
        self.project = zero_linear(hidden, width * vectors)

    def forward(self, original: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        weights = _uniform(mask).to(original.dtype)
        shift = self.project(weights @ states).view(original.shape[0], self.vectors, -1)
        result: Tensor = weights @ original + shift
        return result


class QueryReadOut(ReadOut):
    """Learned queries attend to the block states; their projection is added to the mean of the
    original embeddings."""

    def __init__(self, width: int, hidden: int, heads: int, vectors: int) -> None:
        super().__init__(width, hidden, heads, vectors)
        self.queries = nn.Parameter(torch.randn(vectors, hidden) * hidden**-0.5)
        self.attention = CrossAttention(hidden, heads)
        self.project = zero_linear(hidden, width)

    def forward(self, original: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        read = self.attention(self.queries[None], states, key_mask(mask, states.dtype))
        result: Tensor = _uniform(mask).to(original.dtype) @ original + self.project(read)
        return result


class ClsReadOut(ReadOut):
    """Learned slots in front of the block; their final states are projected and added to the mean
    of the original embeddings."""

    def __init__(self, width: int, hidden: int, heads: int, vectors: int) -> None:
        super().__init__(width, hidden, heads, vectors)
        self.slots = nn.Parameter(torch.randn(vectors, hidden) * 0.02)
        self.project = zero_linear(hidden, width)

    def prefix(self) -> Tensor | None:
        return self.slots

    def forward(self, original: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = _uniform(mask).to(original.dtype) @ original + self.project(states[:, : self.vectors])
        return result


READOUTS: dict[str, type[ReadOut]] = {
    "cls": ClsReadOut,
    "mean": MeanReadOut,
    "query": QueryReadOut,
    "softmax_pool": SoftmaxPool,
}


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that gives zeros until it is trained."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of [B, g, S] over the valid children; zeros where there are none."""
    scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) * mask[:, None]


def _uniform(mask: Tensor) -> Tensor:
    """Equal weights [B, 1, S] over the valid children."""
    return (mask / mask.sum(dim=1, keepdim=True).clamp(min=1))[:, None]


def _parts(vectors: int) -> Tensor:
    """Initial preference [g, BLOCK] of each pool: none for one pool, its own part of the block for
    several."""
    bias = torch.zeros(vectors, BLOCK)
    if vectors > 1:
        owner = torch.arange(BLOCK) * vectors // BLOCK
        bias[owner, torch.arange(BLOCK)] = PART_BIAS
    return bias
