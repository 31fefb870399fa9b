"""Keys and values of many windows side by side, so that one pass reads the next slots of several of them.

Each window has a *row* of tensors that are made once: one that joins, leaves or is cut back touches no other. A row by
itself is a ``KeyValueCache`` like any (``RowStore.open``); ``RowStore.together`` is several of them in one pass, each with
a length of its own. Rows whose numbers follow each other are read where they lie, others are gathered: so a pass takes in
what lies between, as padding, where that is cheaper.

Shapes: R rows in all, S slots of a row, B rows of a pass, q new slots (a row with fewer is padded in front), K slots that
a pass looks at, H heads, c head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from megacontext.errors import BudgetError, ConfigError, InvalidInput
from megacontext.models.cache import KeyValueCache

IntArray = npt.NDArray[np.int64]
# A pass reads rows where they lie, those between included, up to this many times the rows that it is for.
SPARSEST = 1.5


@dataclass(kw_only=True)
class RowStore:
    """``rows`` R windows of at most ``slots`` S slots each. Memory is taken when the first pass shows how wide heads are, and
    by most systems only for rows that were written."""

    rows: int
    slots: int
    _layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _open: dict[int, KeyValueCache] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows < 1 or self.slots < 1:
            raise ConfigError(f"a store needs at least one row of one slot, not {self.rows} of {self.slots}")

    @property
    def nbytes(self) -> int:
        """Bytes of all rows; 0 before the first pass."""
        return sum(part.nbytes for both in self._layers.values() for part in both)

    def open(self, row: int) -> KeyValueCache:
        """An empty cache in ``row``; whatever cache was there before must not be used any more."""
        self._open[row] = KeyValueCache(states=RowCache(self, row))
        return self._open[row]

    def together(self, caches: Sequence[KeyValueCache], counts: Sequence[int], device: torch.device) -> RowPass:
        """One pass that extends ``caches`` (of this store, each once) by ``counts`` slots, each at least one.

        BudgetError where a row has no room; nothing is written then.
        """
        numbers = [int(cache.states.row) for cache in caches]
        strange = any(self._open.get(row) is not cache for row, cache in zip(numbers, caches, strict=True))
        if strange or len(set(numbers)) != len(numbers):
            raise InvalidInput("a pass takes open rows of this store, each of them once")
        for cache, count in zip(caches, counts, strict=True):
            self.check_room(cache.length + count)
        past = np.array([cache.length for cache in caches])
        return RowPass(self, np.array(numbers), past, np.array(counts), device)

    def check_room(self, slots: int) -> None:
        """BudgetError where a row cannot hold that many."""
        if slots > self.slots:
            raise BudgetError(
                f"a window of {slots} slots does not fit a row of {self.slots}: make rows longer or lower the budget"
            )

    def settle(self, rows: RowPass) -> None:
        """The pass went through: its rows hold the new slots, too. Until then they are as before it."""
        for row, length in zip(rows.rows.tolist(), (rows.past + rows.counts).tolist(), strict=True):
            self._open[row].states.fill(sorted(self._layers), length)

    def layer(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [R, H, S, c] of a layer, made for such as those given [B, H, q, c]."""
        if layer not in self._layers:
            # Zeros, not whatever lies there: a slot that is hidden has weight 0, and 0 times NaN is NaN.
            made = tuple(part.new_zeros(self.rows, part.shape[1], self.slots, part.shape[3]) for part in (keys, values))
            self._layers[layer] = (made[0], made[1])
        return self._layers[layer]


class RowCache(Cache):  # type: ignore[misc]
    """One row as transformers sees it."""

    def __init__(self, store: RowStore, row: int) -> None:
        super().__init__(layers=[])
        self._store, self.row = store, row

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """See ``Cache.update``."""
        self._store.layer(layer_idx, key_states, value_states)
        self._grow([layer_idx])
        both: tuple[Tensor, Tensor] = self.layers[layer_idx].update(key_states, value_states)
        return both

    def fill(self, layers: Sequence[int], length: int) -> None:
        """Say that each layer holds ``length`` slots."""
        self._grow(layers)
        for layer in layers:
            self.layers[layer].hold(length)

    def _grow(self, layers: Sequence[int]) -> None:
        while len(self.layers) <= max(layers):
            self.layers.append(RowLayer(self._store, self.row, len(self.layers)))


class RowLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a row: views of the store. A copy of it (``cache.fork``) is a layer of its own."""

    is_sliding = False
    is_croppable = True
    keeps_all_slots = True

    def __init__(self, store: RowStore, row: int, layer: int) -> None:
        self._store, self._row, self._layer = store, row, layer
        self.is_initialized = True
        self.hold(0)

    def hold(self, length: int) -> None:
        """Say that so many slots are held."""
        self._lengths = [length, length]

    @property
    def keys(self) -> Tensor:
        """[1, H, n, c]; can be assigned, as can values: one after the other."""
        return self._held(0)

    @keys.setter
    def keys(self, content: Tensor) -> None:
        self._assign(0, content)

    @property
    def values(self) -> Tensor:
        """[1, H, n, c]."""
        return self._held(1)

    @values.setter
    def values(self, content: Tensor) -> None:
        self._assign(1, content)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to do: the store makes the tensors."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append [1, H, q, c]; returns all."""
        held = self.get_seq_length()
        stop = held + key_states.shape[2]
        self._store.check_room(stop)
        for kind, content in enumerate((key_states, value_states)):
            self._whole(kind)[:, :, held:stop] = content
        self.hold(stop)
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` slots, as in transformers from 5.18 on."""
        self.hold(self.get_seq_length() - abs(tokens_to_remove))

    def reset(self) -> None:
        """Forget everything."""
        self.hold(0)

    def get_seq_length(self) -> int:
        """Slots held."""
        return self._lengths[0]

    def get_max_length(self) -> int:
        """Slots that there is room for."""
        return self._store.slots

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Slots that a pass looks at, and the first of them."""
        return self.get_seq_length() + query_length, 0

    def __copy__(self) -> DynamicLayer:
        """Plain and independent."""
        copied = DynamicLayer()
        copied.lazy_initialization(self.keys, self.values)
        copied.keys, copied.values = self.keys.clone(), self.values.clone()
        return copied

    def _whole(self, kind: int) -> Tensor:
        return self._store._layers[self._layer][kind][self._row : self._row + 1]

    def _held(self, kind: int) -> Tensor:
        return self._whole(kind)[:, :, : self._lengths[kind]]

    def _assign(self, kind: int, content: Tensor) -> None:
        self._store.check_room(content.shape[2])
        self._whole(kind)[:, :, : content.shape[2]] = content
        self._lengths[kind] = content.shape[2]


class RowPass(Cache):  # type: ignore[misc]
    """Rows of a store during one pass, as transformers sees them: made by ``RowStore.together``.

    ``rows``, ``past`` and ``counts`` int64 [b] are those asked for. The pass itself has B ≥ b rows (``size``), ``order`` int64
    [b] tells where those asked for stand among them; the new slots of a row are its last ``counts`` of q (``new``).
    ``where`` selects the B rows from tensors of R.
    """

    def __init__(self, store: RowStore, rows: IntArray, past: IntArray, counts: IntArray, device: torch.device) -> None:
        super().__init__(layers=[])
        self._store, self.rows, self.past, self.counts = store, rows, past, counts
        self.new, self.held = int(counts.max()), int((past + counts).max())
        first, last = int(rows.min()), int(rows.max()) + 1
        self.where: slice | Tensor
        if last - first <= SPARSEST * len(rows):
            self.where, self.order, self.size = slice(first, last), rows - first, last - first
        else:
            self.where, self.order, self.size = torch.from_numpy(rows).to(device), np.arange(len(rows)), len(rows)
        real = np.arange(self.new) >= self.new - counts[:, None]
        slot = np.where(real, (past + counts - self.new)[:, None] + np.arange(self.new), 0)
        at = np.zeros((self.size, self.new), dtype=np.int64)
        at[self.order] = slot
        self.at = torch.from_numpy(at).to(device)
        """int64 [B, q]: which slot of its row each new one is; 0 for padding."""
        row, query = np.nonzero(real)
        index = (rows[row], slot[row, query], self.order[row], query)
        self._to_row, self._to_slot, self._from_row, self._from_slot = (torch.from_numpy(part).to(device) for part in index)

    def allow(self) -> Tensor:
        """Who may see whom: bool [B, q, K]. Every slot sees at least one, so that no softmax runs over nothing."""
        return torch.arange(self.held, device=self.at.device) <= self.at[:, :, None]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values [B, H, q, c] to their rows; returns [B, H, K, c] of each."""
        found = []
        for whole, new in zip(self._store.layer(layer_idx, key_states, value_states), (key_states, value_states), strict=True):
            whole[self._to_row, :, self._to_slot] = new[self._from_row, :, self._from_slot]
            found.append(whole[self.where, :, : self.held])
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots before the new ones, in the longest row."""
        return self.held - self.new

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Slots that the pass looks at, and the first of them."""
        return self.held, 0
