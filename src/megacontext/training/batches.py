"""Training windows in which far tokens stand as gists, drawn from a split: what the base sees, and which tokens are scored.

Two kinds: *banded* rows, in which every token is predicted behind gists (``training.band``), and windows after a random
*pattern* of raw and gisted spans with a raw tail (``engine.substitution``), whose shape a stage of a curriculum may decide.

Shapes: B rows, T tokens of a row, m scored tokens, M gisted spans of a row, g vectors a gist, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megacontext.core.node import BLOCK
from megacontext.engine.substitution import Pattern, draw_pattern, encode_nodes, encode_pattern, token_logits
from megacontext.errors import ConfigError, DatasetError
from megacontext.models import BaseLM, GistNet
from megacontext.models.encoders import AnyGistNet
from megacontext.models.kv_gistnet import KeyValueGistNet
from megacontext.training.augment import augment
from megacontext.training.band import band_logits, draw_bands, needs_far
from megacontext.training.config import MixConfig
from megacontext.training.curriculum import Stage
from megacontext.training.dataset import Blocks
from megacontext.training.kv_band import draw_kept, farther_memory, lookup_band_logits
from megacontext.training.losses import TopTeacher, hidden_states
from megacontext.training.recall import RecallLines

IntArray = npt.NDArray[np.int64]
LONGEST_REPEAT = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What the base makes of the scored tokens: ``logits`` [B, m, V], and the last hidden ``states`` [B, m, d] that they are
    made of, where those were asked for."""

    logits: Tensor
    states: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """``ids`` int64 [B, T] and their ``embeds`` [B, T, d]; ``gisted`` int64 [M], which spans of ``span`` tokens each have
    ``gists`` [B, M, g, d] of level 1; ``live`` bool [B, T], tokens that are no filling (None: all).

    ``scored`` int64 [m]: the places of the tokens that count, by ``weight`` [B, m] (None: equally). ``forward`` passes the
    window through the base, to logits [B, k, V] whose ``columns`` int64 [m] predict them. ``teacher``: what the base says
    about them behind the whole context, where that is known beforehand.
    """

    base: BaseLM
    ids: Tensor
    embeds: Tensor
    gisted: IntArray
    gists: Tensor
    scored: Tensor
    columns: Tensor
    forward: Callable[[], Tensor]
    span: int = BLOCK
    live: Tensor | None = None
    weight: Tensor | None = None
    teacher: TopTeacher | None = None

    @property
    def targets(self) -> Tensor:
        """The scored tokens, int64 [B, m]."""
        return self.ids[:, self.scored]

    def read(self, *, states: bool = False) -> Reading:
        """What the base makes of the window; differentiable."""
        return self._pass(self.forward, self.columns, states)

    @torch.no_grad()
    def read_whole(self, *, states: bool = False) -> Reading:
        """What it makes of the same tokens, all of them raw. Not for rows with filling."""
        first = int(self.scored.min()) - 1
        embeds = self.embeds[:, :-1]
        positions = torch.arange(embeds.shape[1], device=embeds.device).expand(len(embeds), -1)
        return self._pass(
            lambda: self.base.forward(embeds, positions, logits_from=first).logits, self.scored - 1 - first, states
        )

    def _pass(self, forward: Callable[[], Tensor], columns: Tensor, states: bool) -> Reading:
        if not states:
            return Reading(logits=forward()[:, columns])
        with hidden_states(self.base) as caught:
            logits = forward()
        # Some families hand all slots to the head, others those alone that are asked for.
        return Reading(logits=logits[:, columns], states=caught[0][:, -logits.shape[1] :][:, columns])


def sample_rows(train: Blocks, rng: np.random.Generator, *, rows: int, blocks: int) -> IntArray:
    """``rows`` random stretches of ``blocks``·32 valid tokens: int64 [rows, blocks·32]."""
    length = blocks * BLOCK
    if int(train.fill.sum()) < 4 * length:
        raise DatasetError(f"the training split is shorter than four windows of {length} tokens: add documents")
    found: list[IntArray] = []
    while len(found) < rows:
        tokens = train.tokens(int(rng.integers(len(train))), length)
        if len(tokens) == length:
            found.append(tokens)
    return np.stack(found)


def _augmented(
    base: BaseLM, rows: IntArray, rng: np.random.Generator, mix: MixConfig, *, longest: int = 128, earliest: int | None = None
) -> Tensor:
    """Rows int64 [B, T] with repeats and recall lines as the mix has them, where the base is."""
    lines = RecallLines(base.tokenizer) if mix.recall else None
    changed = [
        augment(row, rng, repeats=mix.repeats, recall=mix.recall, lines=lines, longest=longest, earliest=earliest)
        for row in rows
    ]
    return torch.from_numpy(np.stack(changed)).to(base.device)


def draw_batch(
    base: BaseLM,
    gistnet: AnyGistNet,
    train: Blocks,
    rng: np.random.Generator,
    mix: MixConfig,
    stage: Stage | None = None,
    *,
    noise: float = 0.0,
) -> Batch:
    """One micro-batch after ``mix``; ``stage`` decides the shape of pattern windows where there is one."""
    if isinstance(gistnet, KeyValueGistNet):
        return lookup_batch(base, gistnet, train, rng, mix, noise)
    if rng.random() < mix.banded:
        return banded_batch(base, gistnet, train, rng, mix)
    spans = int(rng.integers(1, mix.most_spans + 1)) if rng.random() < mix.lod2 else 0
    if stage is None:
        far = int(rng.integers(mix.far[0], mix.far[1] + 1))
        pattern = draw_pattern(rng, far=far, tail=mix.tail, spans=spans, all_gists=mix.all_gists)
    else:
        pattern = stage_pattern(stage, rng, tail=mix.tail, spans=spans if stage.level > 1 else 0)
    return pattern_batch(base, gistnet, train, rng, mix, pattern)


def longest_window(mix: MixConfig, far: int, *, level: int) -> int:
    """Tokens of the longest row that ``draw_batch`` can draw with at most ``far`` blocks and ``level``."""
    spans = mix.most_spans if mix.lod2 and level > 1 else 0
    drawn = [mix.blocks] if mix.banded else []
    drawn += [spans * BLOCK + far + mix.tail] if mix.banded < 1 else []
    return max(drawn) * BLOCK


def require_whole(base: BaseLM, tokens: int) -> None:
    """ConfigError unless ``base`` can read a row of so many tokens raw, as the teacher of its own gisted windows."""
    if tokens - 1 > base.context_length:
        raise ConfigError(
            f"loss.kl and loss.hidden compare with the base reading whole windows, of up to {tokens} tokens here, but it was "
            f"made for {base.context_length}: lower mix.far (or curriculum.far), mix.blocks or mix.tail, and set mix.lod2 to 0"
        )


def stage_pattern(stage: Stage, rng: np.random.Generator, *, tail: int, spans: int = 0) -> Pattern:
    """``spans`` LOD2 spans, the far context as ``stage`` has it, and ``tail`` raw blocks."""
    raw_tail = np.zeros(tail * BLOCK // stage.span, dtype=np.int64)
    far = stage.pattern(rng).astype(np.int64)
    return Pattern(lod=np.concatenate([np.full(spans * BLOCK, 2), far, raw_tail]), span=stage.span)


def banded_batch(base: BaseLM, gistnet: GistNet, train: Blocks, rng: np.random.Generator, mix: MixConfig) -> Batch:
    """Rows of ``mix.blocks`` in which every token but the first is predicted behind gists."""
    rows = sample_rows(train, rng, rows=mix.rows, blocks=mix.blocks)
    ids = _augmented(base, rows, rng, mix)
    bands = draw_bands(rng, blocks=mix.blocks, group=mix.group)
    embeds = base.embed(ids)
    with torch.set_grad_enabled(learns(gistnet)):
        gists = encode_nodes(gistnet, embeds.view(len(ids), -1, BLOCK, base.width)[:, : bands.gisted], 1)
    return Batch(
        base=base,
        ids=ids,
        embeds=embeds,
        gisted=np.arange(bands.gisted),
        gists=gists,
        scored=torch.arange(1, ids.shape[1]),
        columns=torch.arange(ids.shape[1] - 1),
        forward=lambda: band_logits(base, embeds, gists, bands, stride=gistnet.config.position_stride),
        weight=1.0 + mix.far_weight * needs_far(ids, bands) if mix.far_weight else None,
    )


def lookup_batch(
    base: BaseLM, net: KeyValueGistNet, train: Blocks, rng: np.random.Generator, mix: MixConfig, noise: float
) -> Batch:
    """As ``banded_batch``, behind key/value gists; ``noise`` (nats) on what they keep."""
    before = int(rng.integers(mix.farther[0], mix.farther[1] + 1))
    drawn = sample_rows(train, rng, rows=mix.rows, blocks=before + mix.blocks)
    past, rows = drawn[:, : before * BLOCK], drawn[:, before * BLOCK :]
    if before and rng.random() < mix.strange:
        past = sample_rows(train, rng, rows=mix.rows, blocks=before)
    farther = farther_memory(base, net, torch.from_numpy(past).to(base.device)) if before else None
    ids = _augmented(base, rows, rng, mix)
    bands = draw_bands(rng, blocks=mix.blocks, group=mix.group)
    embeds = base.embed(ids)
    kept = draw_kept(net, embeds, ids, bands.gisted, noise=noise, rng=rng)
    return Batch(
        base=base,
        ids=ids,
        embeds=embeds,
        gisted=np.arange(bands.gisted),
        gists=embeds.new_zeros(len(ids), bands.gisted, net.vectors, 0),
        scored=torch.arange(1, ids.shape[1]),
        columns=torch.arange(ids.shape[1] - 1),
        forward=lambda: lookup_band_logits(base, net, embeds, kept, bands, farther),
        weight=1.0 + mix.far_weight * needs_far(ids, bands) if mix.far_weight else None,
    )


def pattern_batch(
    base: BaseLM, gistnet: GistNet, train: Blocks, rng: np.random.Generator, mix: MixConfig, pattern: Pattern
) -> Batch:
    """Rows that ``pattern`` turns into windows; every raw token that follows another slot is scored."""
    raw_from = pattern.tokens - mix.tail * BLOCK
    rows = sample_rows(train, rng, rows=mix.rows, blocks=pattern.tokens // BLOCK)
    # Repeated where the tokens are raw, so that the gists have something to carry that can be looked up.
    longest = min(LONGEST_REPEAT, raw_from - 1, mix.tail * BLOCK - 1)
    ids = _augmented(base, rows, rng, mix, longest=longest, earliest=raw_from)
    embeds = base.embed(ids)
    pool, gists = gist_pool(pattern, embeds, gistnet)
    absolute = bool(rng.random() < mix.absolute)
    following = torch.from_numpy(pattern.slots(gistnet.vectors)[3][1:])
    columns = (following >= 0).nonzero()[:, 0]
    return Batch(
        base=base,
        ids=ids,
        embeds=embeds,
        gisted=pattern.encoded,
        gists=gists,
        span=pattern.span,
        scored=following[columns],
        columns=columns,
        forward=lambda: token_logits(
            base, pool, pattern, absolute=absolute, vectors=gistnet.vectors, stride=gistnet.config.position_stride
        )[0],
        weight=far_weight(mix, ids, pattern, following[columns]),
    )


def gist_pool(pattern: Pattern, embeds: Tensor, gistnet: GistNet, live: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The pool of ``encode_pattern`` and the LOD1 gists [B, M, g, d] in it."""
    with torch.set_grad_enabled(learns(gistnet)):
        made = encode_pattern(pattern, embeds, gistnet, live)[:, pattern.tokens :]
    count = len(pattern.encoded)
    gists = made[:, : count * gistnet.vectors].reshape(len(embeds), count, gistnet.vectors, embeds.shape[2])
    return torch.cat([embeds, made], dim=1), gists


def far_weight(mix: MixConfig, ids: Tensor, pattern: Pattern, scored: Tensor, live: Tensor | None = None) -> Tensor | None:
    """Weights [B, m] of the ``scored`` places int64 [m]: ``1 + mix.far_weight`` where the token stands in a gisted span before
    and in no raw one; None where all weigh the same."""
    if not mix.far_weight:
        return None
    raw = torch.from_numpy(np.repeat(pattern.lod == 0, pattern.span)).to(ids.device)
    places = scored.to(ids.device)
    same = ids[:, places, None] == ids[:, None, :]
    same &= torch.arange(ids.shape[1], device=ids.device)[None] < places[:, None]
    if live is not None:
        same &= live[:, None]
    return 1.0 + mix.far_weight * ((same & ~raw).any(-1) & ~(same & raw).any(-1))


def learns(gistnet: GistNet) -> bool:
    """Whether gradients through the GistNet are of use: through a frozen one they would only blur the embeddings that it
    picks."""
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in gistnet.parameters())
