"""Keys and values across refocus: what lies before the first changed slot is kept, the rest computed.

Exact: a kept key or value has seen only slots and positions that are still the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megacontext.engine.assemble import IntArray, Slots, positions_of
from megacontext.engine.slot_reader import SlotReader
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.cache import crop, is_croppable
from megacontext.models.positions import PositionStrategy


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Slots that went through the base, and slots that the cache spared, since the session began."""

    forwarded: int = 0
    reused: int = 0


class WindowCache:
    """Reads windows through the base, one after the other, and remembers the common beginning."""

    def __init__(self, base: BaseLM, encoder: GistEncoder | None, strategy: PositionStrategy) -> None:
        self._base, self._strategy = base, strategy
        self._reader = SlotReader(base, encoder)
        self._cache = base.new_cache()
        self._slots: Slots | None = None
        self._positions: IntArray = np.zeros(0, dtype=np.int64)
        self.stats = CacheStats()

    def read(self, slots: Slots) -> Tensor:
        """Logits float32 [V] of what follows the last slot."""
        positions = positions_of(slots, self._strategy, self._base.context_length)
        passes = self._reader.passes(slots)
        keep = self._kept(slots, positions, passes)
        # Forgotten first: a pass that fails must not leave a cache that claims to hold these slots.
        self._slots = None
        with torch.no_grad():
            logits = self._reader([slots], positions[None], last=1, keep=keep, cache=self._cache)
        self._slots, self._positions = slots, positions
        reused = int(passes[:keep].sum())
        self.stats = CacheStats(forwarded=self.stats.forwarded + int(passes.sum()) - reused, reused=self.stats.reused + reused)
        return logits[0, -1]

    def _kept(self, slots: Slots, positions: IntArray, passes: npt.NDArray[np.bool_]) -> int:
        """Cut the cache back to what still holds; how many leading slots that is. One that passes is left to read."""
        newest = int(np.flatnonzero(passes)[-1]) if passes.any() else 0
        keep = self._common(slots, positions, newest)
        held = int(passes[:keep].sum())
        if held == 0 or (held != self._cache.length and not is_croppable(self._cache)):
            self._cache = self._base.new_cache()
            return 0
        if held < self._cache.length:
            self._cache = crop(self._cache, held)
        return keep

    def _common(self, slots: Slots, positions: IntArray, most: int) -> int:
        """Leading slots, at most ``most``, that are the same as before and at the same positions."""
        if self._slots is None:
            return 0
        same = min(self._slots.common_prefix(slots), most)
        differs = self._positions[:same] != positions[:same]
        return int(differs.argmax()) if differs.any() else same
