"""From a working context to what the base model reads: one slot for each raw token and gist vector.

A *slot* is one input embedding. Shapes: n slots, d width, g vectors per gist. Filling is never a slot;
without a gist layer, gist entries have no slots (the far past is then simply not shown).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megacontext.core import BLOCK, WorkingContext, node_blocks
from megacontext.engine.reader import BlockReader
from megacontext.errors import BudgetError
from megacontext.models import BaseLM
from megacontext.models.positions import PositionStrategy

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Slots:
    """Columns of one length n, in order of the timeline.

    ``token`` int64: the id, or -1 for a gist. ``start``/``stop`` int64: the tokens covered. ``entry``
    int64: position in the window (``len(window)`` for the unfinished block). ``vectors`` float16
    [m, d]: the gist vectors, in slot order. ``tail``: the token position from which on they are the window's raw tail.
    """

    token: IntArray
    start: IntArray
    stop: IntArray
    entry: IntArray
    vectors: npt.NDArray[np.float16]
    tail: int = 0

    def __len__(self) -> int:
        return len(self.token)

    def common_prefix(self, other: Slots) -> int:
        """How many leading slots are the same in both."""
        size = min(len(self), len(other))
        differs = np.zeros(size, dtype=np.bool_)
        for mine, theirs in ((self.token, other.token), (self.start, other.start), (self.stop, other.stop)):
            differs |= mine[:size] != theirs[:size]
        return int(differs.argmax()) if differs.any() else size

    def take(self, rows: IntArray) -> Slots:
        """Only the slots at ``rows`` int64 [k], which must increase."""
        gist_number = np.cumsum(self.token < 0) - 1
        return Slots(
            token=self.token[rows],
            start=self.start[rows],
            stop=self.stop[rows],
            entry=self.entry[rows],
            vectors=self.vectors[gist_number[rows][self.token[rows] < 0]],
            tail=self.tail,
        )

    def grown(self, tokens: IntArray, before: WorkingContext) -> Slots:
        """These slots of the window ``before``, its open block's too, and raw ``tokens`` int64 [k] that followed; each block
        that they complete is one more entry."""
        timeline = before.timeline
        entries = len(before) + (timeline.open_tokens + np.arange(len(tokens))) // BLOCK
        return self.then(tokens, timeline.tokens, entries)

    def then(self, tokens: IntArray, start: int, entry: int | IntArray) -> Slots:
        """These slots and raw ``tokens`` int64 [k] from token position ``start`` on, of the window's ``entry`` (or entries)."""
        places = start + np.arange(len(tokens))
        return Slots(
            token=np.concatenate([self.token, tokens]),
            start=np.concatenate([self.start, places]),
            stop=np.concatenate([self.stop, places + 1]),
            entry=np.concatenate([self.entry, np.broadcast_to(entry, len(tokens))]),
            vectors=self.vectors,
            tail=self.tail,
        )


def slots_of(window: WorkingContext, reader: BlockReader, open_ids: IntArray, *, gists: bool) -> Slots:
    """The slots of ``window`` and of the unfinished block's ``open_ids`` int64 [k]."""
    slots = replace(_gathered(window, np.arange(len(window)), reader, gists=gists), tail=window.tail_start * BLOCK)
    return slots.then(open_ids, window.timeline.blocks * BLOCK, len(window))


def slots_after(
    before: WorkingContext, held: Slots, window: WorkingContext, reader: BlockReader, open_ids: IntArray, *, gists: bool
) -> Slots:
    """``slots_of(window, …)``, where ``held`` are those of a window ``before`` it: only entries that are new are gathered."""
    at = np.searchsorted(before.first_blocks, window.first_blocks)
    old = np.minimum(at, max(len(before) - 1, 0))
    same = (at < len(before)) & (before.index[old] == window.index) & (before.lod[old] == window.lod)
    place = np.full(len(before) + 1, -1)
    place[old[same]] = np.flatnonzero(same)
    held = held.take(np.flatnonzero(place[held.entry] >= 0))
    new = _gathered(window, np.flatnonzero(~same), reader, gists=gists)
    entry = place[held.entry]
    slots = _ordered(
        [held.token, new.token], [held.start, new.start], [held.stop, new.stop], [entry, new.entry], [held.vectors, new.vectors]
    )
    slots = replace(slots, tail=window.tail_start * BLOCK)
    return slots.then(open_ids, window.timeline.blocks * BLOCK, len(window))


def _gathered(window: WorkingContext, entries: IntArray, reader: BlockReader, *, gists: bool) -> Slots:
    """The slots of the ``entries`` int64 [k] of a window."""
    lods = window.lod[entries]
    raw = entries[lods == 0]
    blocks = window.index[raw]
    ids, fill = reader.tokens_at(blocks).astype(np.int64), reader.fill_at(blocks)
    real = np.arange(BLOCK) < fill[:, None]
    token = [ids[real]]
    start = [(blocks[:, None] * BLOCK + np.arange(BLOCK))[real]]
    stop = [start[0] + 1]
    entry = [np.repeat(raw, fill)]
    vectors: list[npt.NDArray[np.float16]] = []
    for lod in np.unique(lods[lods > 0]).tolist() if gists else []:
        at = entries[lods == lod]
        found = reader.gists_at(lod, window.index[at])
        count = found.shape[1]
        edges = window.starts[at][:, None] + (np.arange(count + 1) * (window.stops - window.starts)[at][:, None]) // count
        token.append(np.full(found.shape[0] * count, -1))
        start.append(edges[:, :-1].ravel())
        stop.append(edges[:, 1:].ravel())
        entry.append(np.repeat(at, count))
        vectors.append(found.reshape(-1, found.shape[2]))
    return _ordered(token, start, stop, entry, vectors)


def _ordered(
    token: list[IntArray],
    start: list[IntArray],
    stop: list[IntArray],
    entry: list[IntArray],
    vectors: list[npt.NDArray[np.float16]],
) -> Slots:
    """Stretches of slots as one, in order of the timeline; ``vectors`` are those of the gists among them, in their order."""
    tokens, starts = np.concatenate(token), np.concatenate(start)
    order = np.argsort(starts, kind="stable")
    shown = [part for part in vectors if len(part)]
    pool = np.concatenate(shown) if shown else np.zeros((0, 0), dtype=np.float16)
    number = np.cumsum(tokens < 0) - 1
    return Slots(
        token=tokens[order],
        start=starts[order],
        stop=np.concatenate(stop)[order],
        entry=np.concatenate(entry)[order],
        vectors=pool[number[order][tokens[order] < 0]],
    )


def embed_slots(slots: Slots, base: BaseLM, rows: IntArray | None = None) -> Tensor:
    """Input embeddings [1, k, d] of the slots at ``rows`` int64 [k] (None: all), in the base's dtype and device.

    Gists among them must be vectors of the base's embedding space.
    """
    rows = np.arange(len(slots)) if rows is None else rows
    token = slots.token[rows]
    raw = token >= 0
    embeds = torch.empty(len(token), base.width, dtype=base.dtype, device=base.device)
    embeds[torch.from_numpy(raw)] = base.embed(torch.from_numpy(token[raw])[None])[0].to(base.dtype)
    if not raw.all():
        number = np.cumsum(slots.token < 0) - 1
        vectors = torch.from_numpy(slots.vectors[number[rows][~raw]].astype(np.float32))
        embeds[torch.from_numpy(~raw)] = vectors.to(base.device, base.dtype)
    return embeds[None]


def positions_of(slots: Slots, strategy: PositionStrategy, context_length: int) -> IntArray:
    """Positions int64 [n]; BudgetError where there are more slots than the base has positions."""
    if len(slots) > context_length:
        raise BudgetError(
            f"the window has {len(slots)} slots, but the base model was made for {context_length}: lower the budget"
        )
    return strategy(slots.start, slots.stop, context_length)


def describe_entry(lod: int, index: int) -> str:
    """An entry in words: its level and tokens."""
    first, last = node_blocks(lod, index) if lod else (index, index + 1)
    return f"{'raw' if lod == 0 else f'LOD{lod}'} {index} (tokens {first * BLOCK:,}–{last * BLOCK:,})"
