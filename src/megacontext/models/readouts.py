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
    """Contract: ``forward(original [B, S, d], states [B, P + S, h], mask bool [B, S], level int64
    [B]) -> [B, g, d]``, unscaled; masked children have no influence. ``prefix`` slots are put in
    front of the block before its layers run."""

    def __init__(self, width: int, hidden: int, heads: int, vectors: int) -> None:
        super().__init__()
        self.vectors = vectors

    def prefix(self) -> Tensor | None:
        """[P, h] learned slots, or None."""
        return None

    def forward(self, original: Tensor, states: Tensor, mask: Tensor, level: Tensor) -> Tensor:
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

    def forward(self, original: Tensor, states: Tensor, mask: Tensor, level: Tensor) -> Tensor:
        per_slot = -(-original.shape[1] // BLOCK)
        place = self.place.repeat_interleave(per_slot, dim=1)[:, : original.shape[1]]
        weights = _softmax(self.score(states).transpose(1, 2) + place, mask)
        pooled: Tensor = weights @ original + self.project(weights @ states)
        return pooled


class AssociativePool(ReadOut):
    """Several softmax pools a vector, each over a child and its two predecessors, each with a subspace to write to.

    What looks things up in a causal LM is an induction head: it matches the token *before* a place and copies the
    token *at* it (Olsson et al. 2022, https://arxiv.org/abs/2209.11895). A sum of plain token embeddings has
    nothing for it to match. Here every pool can pick one such pair and carry it, ``x_i + B x_{i-1} + C x_{i-2}``, where
    another base head reads; ``training.priming`` starts B and C as what the base's own first layer does. Above level 1
    the children carry their pairs already, and only ``x_i`` counts.

    Starts as the mean of the children: scores, B and C are zero, and the subspaces add up to the identity.
    """

    def __init__(self, width: int, hidden: int, heads: int, vectors: int) -> None:
        super().__init__(width, hidden, heads, vectors)
        self.pools = heads
        self.score = nn.Linear(hidden, vectors * heads)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.direct = nn.Linear(width, vectors * heads, bias=False)
        self.direct_before = nn.Linear(width, vectors * heads, bias=False)
        nn.init.zeros_(self.direct.weight)
        nn.init.zeros_(self.direct_before.weight)
        basis = torch.linalg.qr(torch.randn(width, width)).Q
        self.value = nn.Linear(width * heads, width, bias=False)
        parts = [part @ part.T for part in basis.tensor_split(heads, dim=1)]
        self.value.weight.data.copy_(torch.cat(parts, dim=1))
        self.before = zero_linear(width * heads, width)
        self.before_that = zero_linear(width * heads, width)
        self.project = zero_linear(hidden * heads, width)
        self.offset = nn.Parameter(torch.zeros(vectors, width))
        self.place = nn.Parameter(_parts(vectors).repeat_interleave(heads, dim=0))

    def forward(self, original: Tensor, states: Tensor, mask: Tensor, level: Tensor) -> Tensor:
        batch, slots, _ = original.shape
        place = self.place.repeat_interleave(-(-slots // BLOCK), dim=1)[:, :slots]
        first_level = (level == 1)[:, None, None]
        before = _shifted(original, 1)
        scores = self.score(states) + self.direct(original) + torch.where(first_level, self.direct_before(before), 0.0)
        weights = _softmax(scores.transpose(1, 2) + place, mask)

        def pooled(values: Tensor) -> Tensor:
            return (weights @ values).view(batch, self.vectors, -1)

        shifts = self.before(pooled(before)) + self.before_that(pooled(_shifted(original, 2)))
        # The pairs are in the gists already: what stands before a gist is no part of them.
        shifts = torch.where(first_level, shifts, 0.0)
        # The offset is the same for all gists: by it a base can tell them from tokens, and leave them alone.
        result: Tensor = self.value(pooled(original)) + shifts + self.project(pooled(states)) + self.offset
        return result


class MeanReadOut(ReadOut):
    """The mean of the original embeddings plus a projection of the mean of the block states; one
    per vector."""

    def __init__(self, width: int, hidden: int, heads: int, vectors: int) -> None:
        super().__init__(width, hidden, heads, vectors)
        self.project = zero_linear(hidden, width * vectors)

    def forward(self, original: Tensor, states: Tensor, mask: Tensor, level: Tensor) -> Tensor:
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

    def forward(self, original: Tensor, states: Tensor, mask: Tensor, level: Tensor) -> Tensor:
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

    def forward(self, original: Tensor, states: Tensor, mask: Tensor, level: Tensor) -> Tensor:
        result: Tensor = _uniform(mask).to(original.dtype) @ original + self.project(states[:, : self.vectors])
        return result


READOUTS: dict[str, type[ReadOut]] = {
    "associative_pool": AssociativePool,
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


def _shifted(children: Tensor, by: int) -> Tensor:
    """[B, S, d] with each child replaced by the one ``by`` places before it, zeros where there is none."""
    return nn.functional.pad(children, (0, 0, by, 0))[:, : children.shape[1]]
