"""Entries of stored gists of many windows side by side, for lookup heads of a pass over several rows (see ``batch_cache``).

A window's entries change only when its gists do; so they are written to its row then, and read from there by every pass.

Shapes: R rows in all, B rows of a pass, h lookup heads of a layer, m entries of a window, M entries that a pass looks at,
c head width, q new slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megacontext.models.batch_cache import RowPass
from megacontext.models.kv_memory import StoredMemory


class RowMemory:
    """Entries of at most ``rows`` R windows."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._whole: tuple[dict[int, Tensor], dict[int, Tensor]] = ({}, {})
        # What a row was written from: as long as a window hands out the same tensors, they need not be written again.
        self._source: dict[int, dict[int, Tensor]] = {}

    def read(self, rows: RowPass, memories: Sequence[StoredMemory | None], starts: Sequence[int]) -> StoredMemory | None:
        """What lookup heads read in a pass over ``rows``, given the memory of each (None: it has no gists), whose bias
        [1, 1, ≥ q, m] from ``starts`` on is for the new slots ([1, 1, 1, m]: for all of them). None where no row has gists."""
        given = [(at, memory) for at, memory in enumerate(memories) if memory is not None]
        if not given:
            return None
        sample, most = given[0][1], max(memory.bias.shape[3] for _, memory in given)
        bias = sample.bias.new_full((rows.size, 1, rows.new, most), torch.finfo(sample.bias.dtype).min)
        for at, memory in given:
            self._write(int(rows.rows[at]), memory)
            count, mine = int(rows.counts[at]), memory.bias[0, 0]
            if len(mine) > 1:
                mine = mine[starts[at] : starts[at] + count]
            bias[int(rows.order[at]), 0, rows.new - count :, : mine.shape[1]] = mine
        keys, values = ({layer: part[rows.where, :, :most] for layer, part in whole.items()} for whole in self._whole)
        return StoredMemory(layout=sample.layout, keys=keys, values=values, bias=bias)

    def forget(self, row: int) -> None:
        """Let go of what a row was written from."""
        self._source.pop(row, None)

    def _write(self, row: int, memory: StoredMemory) -> None:
        if self._source.get(row) is memory.keys:
            return
        self._source.pop(row, None)
        for whole, parts in zip(self._whole, (memory.keys, memory.values), strict=True):
            for layer, part in parts.items():
                self._room(whole, layer, part)[row, :, : part.shape[2]] = part[0]
        self._source[row] = memory.keys

    def _room(self, whole: dict[int, Tensor], layer: int, part: Tensor) -> Tensor:
        """The layer's tensor [R, h, ≥ m, c]; grown to twice what is needed, so that this is seldom."""
        old, need = whole.get(layer), part.shape[2]
        if old is None or old.shape[2] < need:
            # Zeros: a hidden entry has weight 0, and 0 times NaN is NaN.
            made = part.new_zeros(self._rows, part.shape[1], 2 * need, part.shape[3])
            if old is not None:
                made[:, :, : old.shape[2]] = old
            whole[layer] = made
        return whole[layer]
