"""The GistNet of key/value gists: which tokens of a block keep their keys and values, and what of them rises a level.

The keys and values are the base's own, from a pass over the block alone, so a gist depends on its 32 tokens only. What
is chosen is what to keep: a score for every token from how rare it and the token before it are (what an induction head
matches is the token before, what it copies the token itself) and its place, to which a small bidirectional network over
the block may add.
Above level 1 the entries with the highest scores of all 32 children rise, and what stands in several of them counts for more:
a pair that came back before is likely to come back again.

Shapes: N blocks, S child slots, R entries a vector, H lookup heads, c head width, g vectors a node, W numbers of a vector,
V vocabulary, d width of the base, i inner width of the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from megacontext.core.node import BLOCK
from megacontext.errors import ConfigError, InvalidInput, ModelMismatch
from megacontext.models.base_lm import BaseLM
from megacontext.models.blocks import EncoderBlock, key_mask, rope_angles
from megacontext.models.canonical import WIDE, CanonicalBatches, padded, random_mask
from megacontext.models.kv_memory import KeyValueLayout, capturing
from megacontext.models.pretrained import LATER, PretrainedNet
from megacontext.models.readouts import zero_linear

WEIGHTS = (1.0, 0.7, 0.05)
"""Before training: of the token's rarity and of the previous token's, both cut at ``CAP``, and of the token's uncut one."""
CAP = 7.0
"""Nats from which on rarer is no better: one very rare half does not make up for a common one."""
GAINS = (0.94, 1.15)
"""Of keys and of values, before training. Where few keys stand for many, a near miss has less company to lose against: keys a
little shorter look away sooner, and values a little longer make up for it where they are meant (validation, docs/log.md)."""
RECURRENCE = 6.0
"""Nats that a score gains when the number of blocks with the same pair grows e-fold: so much that recurrence decides first."""
SAME = 0.97
"""Cosine from which on two keys, or two values, are of the same pair: contexts differ a little."""
REPEATED = 1e4
"""What a pair loses that stood in the same block before: once is enough."""


@dataclass(frozen=True, kw_only=True)
class KeyValueGistNetConfig:
    """``heads`` (layer, key/value head) of the base that read gists, ``entries`` R for each in a vector, ``head_width`` c;
    ``width`` d and ``vocab_size`` V of the base. The network that adds to the lexical score has ``layers`` (0: there is
    none) of inner width ``hidden``. ``position_stride``: window positions that a vector takes; ``base_fingerprint`` of the base
    it is trained for; ``reluctance`` in nats of what reads (``KeyValueLayout``)."""

    heads: tuple[tuple[int, int], ...]
    entries: int
    head_width: int
    width: int
    vocab_size: int
    vectors: int = 1
    layers: int = 0
    hidden: int = 64
    attention_heads: int = 4
    position_stride: int = 1
    base_fingerprint: str = ""
    reluctance: float = field(default=0.0, metadata=LATER)

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", self.layout.heads)
        if not 1 <= self.vectors <= BLOCK:
            raise ConfigError(f"vectors must be between 1 and {BLOCK}, not {self.vectors}")
        if min(self.width, self.vocab_size, self.position_stride) < 1 or self.layers < 0:
            raise ConfigError("width, vocab_size and position_stride must be positive, layers not negative")
        if self.layers and self.hidden % (2 * self.attention_heads):
            raise ConfigError(f"hidden {self.hidden} must be a multiple of twice the attention heads ({self.attention_heads})")

    @property
    def layout(self) -> KeyValueLayout:
        """How the numbers of a vector are laid out."""
        return KeyValueLayout(heads=self.heads, entries=self.entries, head_width=self.head_width, reluctance=self.reluctance)


class KeyValueGistNet(PretrainedNet):
    """Chooses; the base computes. ``set_rarity`` has to be called once before use."""

    kind: ClassVar[str] = "megacontext-kv-gistnet"
    config_class: ClassVar[type[KeyValueGistNetConfig]] = KeyValueGistNetConfig

    def __init__(self, config: KeyValueGistNetConfig) -> None:
        super().__init__(config)
        self.config = config
        self.rarity: Tensor
        self.register_buffer("rarity", torch.zeros(config.vocab_size))
        self.weights = nn.Parameter(torch.tensor(WEIGHTS))
        self.place = nn.Parameter(torch.zeros(BLOCK))
        self.gains = nn.Parameter(torch.tensor(GAINS))
        if config.layers:
            inner = config.hidden
            self.enter = nn.Linear(2 * config.width, inner)
            self.blocks = nn.ModuleList(EncoderBlock(inner, config.attention_heads, 4.0) for _ in range(config.layers))
            self.norm = nn.RMSNorm(inner, eps=1e-6)
            self.head = zero_linear(inner, 1)
        self._batches = CanonicalBatches()

    @property
    def vectors(self) -> int:
        """g, vectors per node."""
        return self.config.vectors

    @property
    def width(self) -> int:
        """W, numbers of a vector."""
        return self.layout.width

    @property
    def layout(self) -> KeyValueLayout:
        """How the base reads a vector."""
        return self.config.layout

    @torch.no_grad()
    def set_rarity(self, surprisal: Tensor) -> None:
        """Take -log of each token's frequency, float [V] (nats)."""
        self.rarity.copy_(surprisal)

    def scores(self, embeds: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """What keeping each token is worth: float [N, 32] from ``embeds`` [N, 32, d] (input embeddings) of ``ids`` int64
        [N, 32]; ``mask`` bool marks real tokens. Differentiable."""
        rare = self.rarity[ids]
        before = nn.functional.pad(rare, (1, 0))[:, :-1]
        token, previous, uncut = self.weights
        score = token * rare.clamp(max=CAP) + previous * before.clamp(max=CAP) + uncut * rare + self.place
        if self.config.layers:
            score = score + self._learned(embeds, mask)
        once: Tensor = score - REPEATED * _stood_before(ids)
        return once

    def _learned(self, embeds: Tensor, mask: Tensor) -> Tensor:
        embeds = torch.where(mask[..., None], embeds, 0.0).to(self.dtype)
        embeds = nn.functional.rms_norm(embeds, embeds.shape[-1:], eps=1e-6)
        states = self.enter(torch.cat([embeds, nn.functional.pad(embeds, (0, 0, 1, 0))[:, :-1]], dim=-1))
        additive = key_mask(mask, states.dtype)
        cos, sin = rope_angles(BLOCK, self.config.hidden // self.config.attention_heads, states.device)
        for block in self.blocks:
            states = block(states, additive, cos, sin)
        score: Tensor = self.head(self.norm(states))[..., 0]
        return score

    @torch.no_grad()
    def encode_blocks(self, base: BaseLM, ids: Tensor, mask: Tensor) -> Tensor:
        """LOD1 gists float16 [N, g, W] of ``ids`` int64 [N, 32]; see ``GistEncoder``. ModelMismatch where the base has no such
        heads, UnsupportedModel where its attention is of another kind."""
        out = torch.zeros(len(ids), self.vectors, self.width, dtype=torch.float16)
        for rows, batch, live in self._canonical(base, ids, mask):
            out[rows] = self.encode_together(base, batch, live)[: rows.stop - rows.start].to("cpu", torch.float16)
        return out

    @torch.no_grad()
    def kept(self, base: BaseLM, ids: Tensor, mask: Tensor) -> Tensor:
        """Which tokens ``encode_blocks`` keeps: bool [N, 32], in the same order as the entries of a gist."""
        out = torch.zeros(ids.shape, dtype=torch.bool)
        for rows, batch, live in self._canonical(base, ids, mask):
            scores = self.scores(base.embed(torch.where(live, batch, 0)), batch, live)
            best, there = self._best(scores, live)
            chosen = torch.zeros_like(live).scatter(1, best, there)
            out[rows] = chosen[: rows.stop - rows.start].cpu()
        return out

    def _canonical(self, base: BaseLM, ids: Tensor, mask: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Ids and mask in batches of canonical shapes, padded, and which rows they are; in eval mode meanwhile."""
        self._check_base(base)
        was_training = self.training
        self.eval()

        def compute(inputs: Tensor, live: Tensor) -> Tensor:
            inputs, live = inputs.to(self.device), live.to(self.device)
            keys, values, embeds = self._computed(base, inputs, live)
            return torch.cat([keys.flatten(1), values.flatten(1), self.scores(embeds, inputs, live)], dim=1)

        def sample(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            numbers = torch.randint(0, self.config.vocab_size, (WIDE, BLOCK), generator=generator)
            return numbers, random_mask(WIDE, BLOCK, generator)

        like = torch.empty(0, dtype=torch.int64, device=self.device)
        for rows, size in self._batches.slices(len(ids), compute, sample, base.fingerprint, base.dtype, self.device):
            yield rows, padded(ids[rows], size, like), padded(mask[rows], size, like.bool())
        self.train(was_training)

    def encode_together(self, base: BaseLM, ids: Tensor, mask: Tensor) -> Tensor:
        """As ``encode_blocks``, float32 [N, g, W] of all N at once where the base is: faster, but the last bits depend on N."""
        keys, values, embeds = self._computed(base, ids, mask)
        return self._keep(self.gains[0] * keys, self.gains[1] * values, self.scores(embeds, ids, mask), mask)

    def _computed(self, base: BaseLM, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [N, 32, H, c] of the lookup heads, positions taken off, and the embeddings [N, 32, d]."""
        embeds = base.embed(torch.where(mask, ids, 0))
        positions = torch.arange(BLOCK, device=ids.device).expand(len(ids), -1)
        with capturing(self.layout.layers) as captured:
            base.forward(embeds, positions, valid=mask)
        rotary = base.rotary
        keys = self._of_heads({at: rotary.take_off(k, positions) for at, (_, k, _) in captured.found.items()})
        values = self._of_heads({at: v for at, (_, _, v) in captured.found.items()})
        return keys, values, embeds

    @torch.no_grad()
    def mean_of_blocks(self, base: BaseLM, ids: Tensor, mask: Tensor) -> Tensor:
        """A control: as many means of consecutive tokens' keys and values as a gist has entries, with its gains. float16
        [N, g, W]."""
        self._check_base(base)
        keys, values, _ = self._computed(base, ids, mask)
        count = min(self.vectors * self.config.entries, BLOCK)
        means = [torch.stack([p.mean(dim=1) for p in part.tensor_split(count, dim=1)], dim=1) for part in (keys, values)]
        everything = torch.ones(len(ids), count, dtype=torch.bool, device=keys.device)
        keys, values = self.gains[0] * means[0], self.gains[1] * means[1]
        return self._keep(keys, values, keys.new_zeros(len(ids), count), everything).to("cpu", torch.float16)

    def _of_heads(self, layers: dict[int, Tensor]) -> Tensor:
        """Keys or values [N, H, S, c] by layer to those of the lookup heads: [N, S, H, c]."""
        return torch.stack([layers[layer][:, head] for layer, head in self.layout.heads], dim=2).float()

    @torch.no_grad()
    def encode_canonical(self, children: Tensor, mask: Tensor, level: int) -> Tensor:
        """Gists float16 [N, g, W] of a level above 1 from children float [N, S, W]; see ``GistEncoder``."""
        if level < 2:
            raise InvalidInput("key/value gists of level 1 are made from tokens: use encode_blocks")
        if children.dim() != 3 or children.shape[2] != self.width or mask.shape != children.shape[:2]:
            raise InvalidInput(f"children must be [N, S, {self.width}] with a mask [N, S], not {list(children.shape)}")
        kept = torch.zeros(len(children), self.vectors, self.width, dtype=torch.float16)
        for node, (each, live) in enumerate(zip(children, mask, strict=True)):
            kept[node] = self._risen(each[None], live[None].to(children.device))[0]
        return kept

    def _risen(self, children: Tensor, mask: Tensor) -> Tensor:
        """One node, alone, so that its bits do not depend on others: [1, S, W] and mask [1, S] to [1, g, W].

        Of entries with the same pair the first stays, scored as all of them: ``ρ log Σ exp(score / ρ)``. For equal scores
        that is ``score + ρ log count``, and it does not matter how the blocks are grouped into levels.
        """
        keys, values, scores = self.layout.unpack(children.float())
        keys, values, scores = keys.flatten(1, 2), values.flatten(1, 2), scores.flatten(1)
        there = (keys != 0).flatten(2).any(-1) & mask.repeat_interleave(self.config.entries, dim=1)
        same = _alike(keys) & _alike(values) & there[:, None] & there[:, :, None]
        together = RECURRENCE * (scores[:, None] / RECURRENCE).masked_fill(~same, -torch.inf).logsumexp(-1)
        first = there & ~same.tril(-1).any(-1)
        return self._keep(keys, values, together, first)

    def _keep(self, keys: Tensor, values: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        """The g·R best of k entries, in their own order: keys and values [N, k, H, c], scores and mask [N, k] to [N, g, W]."""
        layout = self.layout
        best, there = self._best(scores, mask)
        at = best[..., None, None].expand(-1, -1, *keys.shape[2:])
        keys, values = (part.gather(1, at) * there[..., None, None] for part in (keys, values))
        numbers = [keys, values, scores.gather(1, best).masked_fill(~there, 0.0)]
        missing = self.vectors * self.config.entries - best.shape[1]
        if missing:
            numbers = [torch.cat([part, part.new_zeros(len(part), missing, *part.shape[2:])], dim=1) for part in numbers]
        keys, values, scores = (part.reshape(len(part), self.vectors, -1, *part.shape[2:]) for part in numbers)
        return layout.pack(keys, values, scores)

    def _best(self, scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The g·R best of k entries (or all), ascending: their indices [N, m], and which of them are there."""
        ranked = scores.masked_fill(~mask, -torch.inf)
        # Stable, so that equal scores do not depend on the batch.
        best = ranked.argsort(dim=1, descending=True, stable=True)[:, : self.vectors * self.config.entries].sort(dim=1).values
        return best, mask.gather(1, best)

    def _check_base(self, base: BaseLM) -> None:
        made_for = self.config.base_fingerprint
        if made_for and made_for != base.fingerprint:
            raise ModelMismatch(f"this GistNet was trained for the base {made_for[:12]}, not for {base.fingerprint[:12]}")
        base.enable_lookup()


def _stood_before(ids: Tensor) -> Tensor:
    """Whether a token and the one before it stand in the same block earlier already: bool [N, 32] from int64 [N, 32]."""
    previous = nn.functional.pad(ids, (1, 0), value=-1)[:, :-1]
    same = (ids[:, :, None] == ids[:, None, :]) & (previous[:, :, None] == previous[:, None, :])
    return same.tril(-1).any(-1)


def _alike(parts: Tensor) -> Tensor:
    """Which of k keys (or values) [1, k, H, c] point the same way, over all heads: bool [1, k, k]."""
    unit = nn.functional.normalize(parts.flatten(2), dim=-1)
    return unit @ unit.mT > SAME
