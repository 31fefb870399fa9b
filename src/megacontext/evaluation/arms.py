"""The arms of the quality benchmark: what the base model sees beside the tail.

Every arm is a way to make the slots that the base reads, through the product's own assembly, so that a
mistake there shows here. An arm that chooses is asked again every ``renewal`` tokens and sees only what
comes before them; only the oracle looks at the answer, and says so. Shapes: H scored tokens, far/32 blocks
of far context, g vectors a gist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext.core import (
    BLOCK,
    AllocatorConfig,
    EditHistory,
    Timeline,
    WorkingContext,
)
from megacontext.engine.assemble import Slots, slots_of
from megacontext.engine.focus import FOCUS_DEFAULTS, refocus
from megacontext.engine.policies import FocusPolicy, FocusView
from megacontext.engine.reader import ArrayReader
from megacontext.evaluation.gists import blocks_of, encode_blocks, noise_like, rarest_places
from megacontext.evaluation.items import IntArray
from megacontext.evaluation.scoring import Chunk
from megacontext.models import BaseLM, GistEncoder

SINKS = 4
QUERY = 128
"""Newest tokens that a choice may look at, as in a session."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item with its gists: ``ids`` int64 [far + tail + H]; ``reader`` over all its complete blocks.

    ``row`` is its number among the items.
    """

    ids: IntArray
    far: int
    tail: int
    reader: ArrayReader
    row: int = 0

    @property
    def context(self) -> int:
        """Tokens before the scored ones."""
        return self.far + self.tail

    @property
    def scored(self) -> IntArray:
        """The scored tokens, int64 [H]."""
        return self.ids[self.context :]

    @property
    def blocks(self) -> int:
        """Blocks of far context."""
        return self.far // BLOCK

    @property
    def vectors(self) -> int:
        """g; 1 where there are no gists."""
        return int(self.reader.gists[1].shape[1]) if 1 in self.reader.gists else 1


Arm = Callable[[Item], Sequence[Chunk]]
"""From an item to its scored tokens, in order, each stretch with the slots that the base reads before it."""


def make_reader(ids: IntArray, encoder: GistEncoder | None, base: BaseLM) -> ArrayReader:
    """A reader over the complete blocks of ``ids`` int64 [tokens], with LOD1 gists where there is an encoder."""
    return reader_over(ids, {1: encode_blocks(blocks_of(ids), base, encoder)} if encoder is not None else {})


def reader_over(ids: IntArray, gists: dict[int, npt.NDArray[np.float16]]) -> ArrayReader:
    """A reader over the complete blocks of ``ids`` int64 [tokens] and their ``gists`` by level."""
    blocks = blocks_of(ids)
    return ArrayReader(
        ids=blocks.astype(np.uint32),
        fill=np.full(len(blocks), BLOCK, dtype=np.uint8),
        documents=np.zeros(len(blocks), dtype=np.uint32),
        gists=gists,
    )


def window_of(item: Item, far_lod: npt.NDArray[np.int8], budget: int) -> WorkingContext:
    """Far blocks raw or as LOD1 gists by ``far_lod`` int8 [far/32], the tail raw."""
    tail = item.tail // BLOCK
    return WorkingContext(
        timeline=Timeline(blocks=item.blocks + tail),
        lod=np.concatenate([far_lod, np.zeros(tail, dtype=np.int8)]),
        index=np.arange(item.blocks + tail),
        budget=budget,
        recent=item.tail,
        vectors=item.vectors,
    )


def _slots(item: Item, far_lod: int, reader: ArrayReader | None = None) -> Slots:
    window = window_of(item, np.full(item.blocks, far_lod, dtype=np.int8), item.context)
    return slots_of(window, reader or item.reader, np.zeros(0, dtype=np.int64), gists=far_lod > 0)


def _at_once(item: Item, slots: Slots) -> list[Chunk]:
    return [Chunk(context=slots, following=item.scored, start=item.context)]


def full(item: Item) -> list[Chunk]:
    """All raw tokens: the ceiling."""
    return _at_once(item, _slots(item, 0))


def recency(slots: int) -> Arm:
    """The newest ``slots`` raw tokens before the tail; 0 is ``drop``, the floor."""

    def arm(item: Item) -> list[Chunk]:
        raw = _slots(item, 0)
        return _at_once(item, raw.take(np.arange(len(raw) - item.tail - slots, len(raw))))

    return arm


def recency_sinks(slots: int) -> Arm:
    """Recency with the first four tokens as attention sinks (StreamingLLM, https://arxiv.org/abs/2309.17453)."""

    def arm(item: Item) -> list[Chunk]:
        raw = _slots(item, 0)
        newest = np.arange(len(raw) - item.tail - slots + SINKS, len(raw))
        return _at_once(item, raw.take(np.concatenate([np.arange(SINKS), newest])))

    return arm


def gist(item: Item) -> list[Chunk]:
    """All far context as LOD1 gists, nothing expanded."""
    return _at_once(item, _slots(item, 1))


def with_gists(change: Callable[[Item], npt.NDArray[np.float16]]) -> Arm:
    """The gist arm with other vectors in the same places: a control. ``change`` gives float16 [blocks, g, d]."""

    def arm(item: Item) -> list[Chunk]:
        reader = replace(item.reader, gists={1: change(item)})
        return _at_once(item, _slots(item, 1, reader))

    return arm


def noise(encoder: GistEncoder) -> Callable[[Item], npt.NDArray[np.float16]]:
    """Random vectors with the norms of the true gists."""
    return lambda item: noise_like(item.reader.gists[1], int(item.ids.sum()), encoder.layout)


def rarest(counts: IntArray, each: int) -> Arm:
    """The ``each`` rarest tokens of every far block, raw: as many slots as gists take. ``counts`` int64 [V]."""

    def arm(item: Item) -> list[Chunk]:
        raw = _slots(item, 0)
        places = rarest_places(blocks_of(item.ids[: item.far]), counts, each)
        kept = (np.arange(item.blocks)[:, None] * BLOCK + places).ravel()
        return _at_once(item, raw.take(np.concatenate([kept, np.arange(item.far, len(raw))])))

    return arm


def in_front(change: Callable[[Item], npt.NDArray[np.float16]] | None, raw: int) -> Arm:
    """The newest ``raw`` far tokens and the tail, all raw, behind gists of something else (None: behind nothing).

    The raw context is complete, so gists of an unrelated document can only cost. ``change`` gives float16
    [blocks, g, d], of which those in the far context's places are shown.
    """

    def arm(item: Item) -> list[Chunk]:
        tokens = _slots(item, 0)
        tokens = tokens.take(np.arange(len(tokens) - item.tail - raw, len(tokens)))
        if change is None:
            return _at_once(item, tokens)
        alien = _slots(item, 1, replace(item.reader, gists={1: change(item)}))
        alien = alien.take(np.arange(item.blocks * item.vectors))
        moved = replace(alien, start=alien.start - item.far, stop=alien.stop - item.far)
        return _at_once(item, joined(moved, tokens))

    return arm


def joined(first: Slots, then: Slots) -> Slots:
    """Two stretches of slots as one; ``first`` lies before ``then``."""
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(first, name), getattr(then, name)]) for name in ("token", "start", "stop", "entry")
    }
    shown = [part.vectors for part in (first, then) if len(part.vectors)]  # without gists there is no width either
    return replace(then, **columns, vectors=np.concatenate(shown) if shown else first.vectors)


def focused(policy: FocusPolicy, *, slots: int, renewal: int, allocator: AllocatorConfig | None = None) -> Arm:
    """Gists, expanded by ``policy`` and the greedy allocator to at most ``slots`` beside the tail.

    The window is kept from one renewal to the next, as in a session; all edits are allowed.
    """
    config = replace(allocator or FOCUS_DEFAULTS, max_edits=None, reserve=0)

    def arm(item: Item) -> list[Chunk]:
        gists = np.ones(item.blocks, dtype=np.int8)
        window, history, chunks = window_of(item, gists, slots + item.tail), EditHistory(), []
        for at in range(0, len(item.scored), renewal):
            seen = item.context + at
            window = _grown(window, seen, slots + item.tail + at)
            # Another number for every item: random policies must not choose the same places in all of them.
            step_number = item.row * len(item.scored) + at
            view = FocusView(window=window, reader=item.reader, query=item.ids[max(0, seen - QUERY) : seen], step=step_number)
            step = refocus(view, policy, config, history)
            window, history = step.after, step.history
            chunks.append(_chunk(item, window, at, renewal, gists=True))
        return chunks

    return arm


def openings(blocks: int, slots: int, vectors: int) -> int:
    """How many of ``blocks`` fit raw into ``slots`` beside the gists of the others, ``vectors`` each; 0 where none does."""
    return min(blocks, max(0, (slots - blocks * vectors) // (BLOCK - vectors)))


Choice = Callable[[Item, int, int], IntArray]
"""``(item, at, most)``: far blocks to read raw for the tokens from ``at`` on, at most ``most``: int64 [≤ most]."""


def chosen(choose: Choice, *, slots: int, renewal: int, gists: bool) -> Arm:
    """The blocks of ``choose`` raw, the others as gists or, without ``gists``, not at all; at most ``slots`` in all."""

    def arm(item: Item) -> list[Chunk]:
        most = openings(item.blocks, slots, item.vectors) if gists else slots // BLOCK
        chunks = []
        for at in range(0, len(item.scored), renewal):
            far_lod = np.ones(item.blocks, dtype=np.int8)
            far_lod[choose(item, at, most)] = 0
            window = _grown(window_of(item, far_lod, item.context), item.context + at, item.context + at)
            chunks.append(_chunk(item, window, at, renewal, gists=gists))
        return chunks

    return arm


def _chunk(item: Item, window: WorkingContext, at: int, renewal: int, *, gists: bool) -> Chunk:
    """The next ``renewal`` tokens behind ``window`` and the block that is not complete yet."""
    seen = item.context + at
    context = slots_of(window, item.reader, item.ids[seen // BLOCK * BLOCK : seen], gists=gists)
    return Chunk(context=context, following=item.ids[seen : seen + renewal], start=seen)


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
