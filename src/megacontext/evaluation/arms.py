"""The arms of the quality benchmark: what the base model sees beside the tail.

Every arm is a way to make the slots that the base reads, through the product's own assembly, so that a
mistake there shows here. An arm that chooses is asked again every ``renewal`` tokens and sees only what
comes before them. Shapes: H scored tokens, far/32 blocks of far context.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from megacontext.core import (
    BLOCK,
    AllocatorConfig,
    EditHistory,
    Timeline,
    WorkingContext,
)
from megacontext.engine.assemble import Slots, embed_slots, positions_of, slots_of
from megacontext.engine.focus import FOCUS_DEFAULTS, refocus
from megacontext.engine.policies import FocusPolicy, FocusView
from megacontext.engine.reader import ArrayReader
from megacontext.evaluation.items import IntArray
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.positions import PositionStrategy, WindowRanks

FloatArray = npt.NDArray[np.float64]
SINKS = 4


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item with its gists: ``ids`` int64 [far + tail + H]; ``reader`` over all complete context blocks."""

    ids: IntArray
    far: int
    tail: int
    reader: ArrayReader

    @property
    def context(self) -> int:
        """Tokens before the scored ones."""
        return self.far + self.tail

    @property
    def scored(self) -> IntArray:
        """The scored tokens, int64 [H]."""
        return self.ids[self.context :]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores slots with a base; positions by one strategy for all arms."""

    base: BaseLM
    strategy: PositionStrategy = field(default_factory=WindowRanks)

    def __call__(self, context: Slots, following: IntArray, start: int) -> FloatArray:
        """NLL float64 [k] (nats) of ``following`` int64 [k] tokens behind the slots, from token position ``start``."""
        slots = context.then(following, start, -1)
        positions = positions_of(slots, self.strategy, self.base.context_length)[:-1]
        embeds = embed_slots(slots, self.base)[:, :-1]
        first = len(context) - 1
        with torch.no_grad():
            logits = self.base.forward(embeds, torch.from_numpy(positions)[None], logits_from=first).logits[0]
        nll = torch.nn.functional.cross_entropy(logits, torch.from_numpy(following), reduction="none")
        return nll.double().numpy()


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """``nll`` float64 [H]; ``slots`` used beside the tail (mean over renewals)."""

    nll: FloatArray
    slots: float


Arm = Callable[[Item, Scorer], ArmResult]


def make_reader(ids: IntArray, encoder: GistEncoder | None, base: BaseLM) -> ArrayReader:
    """A reader over the complete blocks of ``ids`` int64 [tokens], with LOD1 gists where there is an encoder."""
    count = len(ids) // BLOCK
    blocks = ids[: count * BLOCK].reshape(count, BLOCK)
    gists = {}
    if encoder is not None:
        with torch.no_grad():
            embedded = base.embed(torch.from_numpy(blocks))
        mask = torch.ones(blocks.shape, dtype=torch.bool)
        gists[1] = encoder.encode_canonical(embedded, mask, 1).numpy()
    return ArrayReader(
        ids=blocks.astype(np.uint32),
        fill=np.full(count, BLOCK, dtype=np.uint8),
        documents=np.zeros(count, dtype=np.uint32),
        gists=gists,
    )


def _window(item: Item, far_lod: int, budget: int) -> WorkingContext:
    """Far blocks raw or as LOD1 gists, the tail raw."""
    far, tail = item.far // BLOCK, item.tail // BLOCK
    return WorkingContext(
        timeline=Timeline(blocks=far + tail),
        lod=np.concatenate([np.full(far, far_lod), np.zeros(tail)]).astype(np.int8),
        index=np.arange(far + tail),
        budget=budget,
        recent=item.tail,
    )


def _slots(item: Item, far_lod: int, reader: ArrayReader | None = None) -> Slots:
    window = _window(item, far_lod, item.context)
    return slots_of(window, reader or item.reader, np.zeros(0, dtype=np.int64), gists=far_lod > 0)


def _result(item: Item, scorer: Scorer, slots: Slots) -> ArmResult:
    return ArmResult(nll=scorer(slots, item.scored, item.context), slots=len(slots) - item.tail)


def full(item: Item, scorer: Scorer) -> ArmResult:
    """All raw tokens: the ceiling."""
    return _result(item, scorer, _slots(item, 0))


def recency(slots: int) -> Arm:
    """The newest ``slots`` raw tokens before the tail; 0 is ``drop``, the floor."""

    def arm(item: Item, scorer: Scorer) -> ArmResult:
        raw = _slots(item, 0)
        return _result(item, scorer, raw.take(np.arange(len(raw) - item.tail - slots, len(raw))))

    return arm


def recency_sinks(slots: int) -> Arm:
    """Recency with the first four tokens as attention sinks (StreamingLLM, https://arxiv.org/abs/2309.17453)."""

    def arm(item: Item, scorer: Scorer) -> ArmResult:
        raw = _slots(item, 0)
        newest = np.arange(len(raw) - item.tail - slots + SINKS, len(raw))
        return _result(item, scorer, raw.take(np.concatenate([np.arange(SINKS), newest])))

    return arm


def gist(item: Item, scorer: Scorer) -> ArmResult:
    """All far context as LOD1 gists, nothing expanded."""
    return _result(item, scorer, _slots(item, 1))


def with_gists(change: Callable[[Item], npt.NDArray[np.float16]]) -> Arm:
    """The gist arm with other vectors in the same places: a control. ``change`` gives float16 [blocks, g, d]."""

    def arm(item: Item, scorer: Scorer) -> ArmResult:
        reader = replace(item.reader, gists={1: change(item)})
        return _result(item, scorer, _slots(item, 1, reader))

    return arm


def noise(item: Item) -> npt.NDArray[np.float16]:
    """Random vectors with the norms of the true gists."""
    true = item.reader.gists[1].astype(np.float32)
    drawn = np.random.default_rng(int(item.ids.sum())).standard_normal(true.shape).astype(np.float32)
    drawn *= np.linalg.norm(true, axis=-1, keepdims=True) / np.linalg.norm(drawn, axis=-1, keepdims=True)
    return drawn.astype(np.float16)


def focused(policy: FocusPolicy, *, slots: int, renewal: int, allocator: AllocatorConfig | None = None) -> Arm:
    """Gists, expanded by ``policy`` and the greedy allocator to at most ``slots`` beside the tail.

    The window is kept from one renewal to the next, as in a session; all edits are allowed.
    """
    config = replace(allocator or FOCUS_DEFAULTS, max_edits=None, reserve=0)

    def arm(item: Item, scorer: Scorer) -> ArmResult:
        window, history = _window(item, 1, slots + item.tail), EditHistory()
        parts, used = [], []
        for at in range(0, len(item.scored), renewal):
            seen = item.context + at
            window = _grown(window, seen, slots + item.tail + at)
            view = FocusView(window=window, reader=item.reader, query=item.ids[max(0, seen - 128) : seen], step=at)
            step = refocus(view, policy, config, history)
            window, history = step.after, step.history
            open_ids = item.ids[seen // BLOCK * BLOCK : seen]
            context = slots_of(window, item.reader, open_ids, gists=True)
            parts.append(scorer(context, item.ids[seen : seen + renewal], seen))
            used.append(len(context) - item.tail - at)
        return ArmResult(nll=np.concatenate(parts), slots=float(np.mean(used)))

    return arm


def _grown(window: WorkingContext, tokens: int, budget: int) -> WorkingContext:
    """The window when ``tokens`` are there, with another budget; new blocks raw."""
    timeline = window.timeline.extend(tokens // BLOCK, tokens % BLOCK)
    new = np.arange(window.timeline.blocks, timeline.blocks)
    return WorkingContext(
        timeline=timeline,
        lod=np.concatenate([window.lod, np.zeros(len(new), dtype=np.int8)]),
        index=np.concatenate([window.index, new]),
        budget=budget,
        recent=window.recent + tokens - window.timeline.tokens,
        vectors=window.vectors,
    )
