"""From a working context to what the base model reads: one slot for each raw token and gist vector.

A *slot* is one input embedding. Shapes: n slots, d width, g vectors per gist. Filling is never a slot;
without a gist layer, gist entries have no slots (the far past is then simply not shown).
"""

from __future__ import annotations

from dataclasses import dataclass

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
    [m, d]: the gist vectors, in slot order.
    """

    token: IntArray
    start: IntArray
    stop: IntArray
    entry: IntArray
    vectors: npt.NDArray[np.float16]

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
        )

    def then(self, tokens: IntArray, start: int, entry: int) -> Slots:
        """These slots and raw ``tokens`` int64 [k] from token position ``start`` on."""
        places = start + np.arange(len(tokens))
        return Slots(
            token=np.concatenate([self.token, tokens]),
            start=np.concatenate([self.start, places]),
            stop=np.concatenate([self.stop, places + 1]),
            entry=np.concatenate([self.entry, np.full(len(tokens), entry)]),
            vectors=self.vectors,
        )


def slots_of(window: WorkingContext, reader: BlockReader, open_ids: IntArray, *, gists: bool) -> Slots:
    """The slots of ``window`` and of the unfinished block's ``open_ids`` int64 [k]."""
    raw = np.flatnonzero(window.lod == 0)
    blocks = window.index[raw]
    ids, fill = reader.tokens_at(blocks).astype(np.int64), reader.fill_at(blocks)
    real = np.arange(BLOCK) < fill[:, None]
    token = [ids[real]]
    start = [(blocks[:, None] * BLOCK + np.arange(BLOCK))[real]]
    stop = [start[0] + 1]
    entry = [np.repeat(raw, fill)]
    vectors: list[npt.NDArray[np.float16]] = []
    for lod in np.unique(window.lod[window.lod > 0]).tolist() if gists else []:
        at = np.flatnonzero(window.lod == lod)
        found = reader.gists_at(lod, window.index[at])
        count = found.shape[1]
        edges = window.starts[at][:, None] + (np.arange(count + 1) * (window.stops - window.starts)[at][:, None]) // count
        token.append(np.full(found.shape[0] * count, -1))
        start.append(edges[:, :-1].ravel())
        stop.append(edges[:, 1:].ravel())
        entry.append(np.repeat(at, count))
        vectors.append(found.reshape(-1, found.shape[2]))
    columns = [np.concatenate(column) for column in (token, start, stop, entry)]
    order = np.argsort(columns[1], kind="stable")
    width = vectors[0].shape[1] if vectors else 0
    pool = np.concatenate(vectors) if vectors else np.zeros((0, width), dtype=np.float16)
    slots = Slots(
        token=columns[0][order],
        start=columns[1][order],
        stop=columns[2][order],
        entry=columns[3][order],
        # Slot number s of the unsorted gists is row s - raw tokens of the pool.
        vectors=pool[order[order >= len(token[0])] - len(token[0])],
    )
    return slots.then(open_ids, window.timeline.blocks * BLOCK, len(window))


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
