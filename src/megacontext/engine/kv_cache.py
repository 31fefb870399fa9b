"""Keys and values across refocus: what lies before the first changed slot is kept, the rest computed.

Exact: a kept key or value has seen only slots and positions that are still the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megacontext.engine.assemble import IntArray, Slots, embed_slots, positions_of
from megacontext.models import BaseLM
from megacontext.models.cache import crop, is_croppable
from megacontext.models.positions import PositionStrategy


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Slots that went through the base, and slots that the cache spared, since the session began."""

    forwarded: int = 0
    reused: int = 0


class WindowCache:
    """Reads windows through the base, one after the other, and remembers the common beginning."""

    def __init__(self, base: BaseLM, strategy: PositionStrategy) -> None:
        self._base, self._strategy = base, strategy
        self._cache = base.new_cache()
        self._slots: Slots | None = None
        self._positions: IntArray = np.zeros(0, dtype=np.int64)
        self.stats = CacheStats()

    def read(self, slots: Slots) -> Tensor:
        """Logits float32 [V] of what follows the last slot."""
        positions = positions_of(slots, self._strategy, self._base.context_length)
        keep = self._kept(slots, positions)
        embeds = embed_slots(slots, self._base, keep)
        # Forgotten first: a pass that fails must not leave a cache that claims to hold these slots.
        self._slots = None
        with torch.no_grad():
            out = self._base.forward(
                embeds,
                torch.from_numpy(positions[keep:])[None].to(self._base.device),
                cache=self._cache,
                logits_from=len(slots) - keep - 1,
            )
        self._slots, self._positions = slots, positions
        self.stats = CacheStats(forwarded=self.stats.forwarded + len(slots) - keep, reused=self.stats.reused + keep)
        return out.logits[0, -1]

    def _kept(self, slots: Slots, positions: IntArray) -> int:
        """Cut the cache back to what still holds and return its length; at least one slot is left to read."""
        if self._slots is None:
            self._cache = self._base.new_cache()
            return 0
        same = min(self._slots.common_prefix(slots), len(slots) - 1)
        differs = self._positions[:same] != positions[:same]
        keep = int(differs.argmax()) if differs.any() else same
        if keep == self._cache.length:
            return keep
        if not is_croppable(self._cache) or keep == 0:
            self._cache = self._base.new_cache()
            return 0
        self._cache = crop(self._cache, keep)
        return keep
