"""Keys and values across refocus: what lies before the first changed slot is kept, the rest computed.

Exact: a kept key or value has seen only slots and positions that are still the same.

``plan`` says what has to go through the base, ``run`` does it, ``settle`` notes that it was done. A scheduler plans for
many sessions, forwards their passes together and settles each.
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
from megacontext.models.cache import KeyValueCache, crop, is_croppable
from megacontext.models.kv_memory import StoredMemory
from megacontext.models.positions import PositionStrategy


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Slots that went through the base, and slots that the cache spared, since the session began."""

    forwarded: int = 0
    reused: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Pass:
    """What has to go through the base before the token behind ``slots`` can be predicted.

    ``positions`` int64 [n] of all slots; ``at`` int64 [q ≥ 1]: the slots to forward, ascending, the newest one last; the
    logits wanted are the last one's. ``cache`` holds ``kept`` rows, and is extended by the pass.
    Valid until the next plan for the same cache.
    """

    slots: Slots
    positions: IntArray
    at: IntArray
    kept: int
    cache: KeyValueCache

    def __len__(self) -> int:
        """Slots to forward."""
        return len(self.at)


class WindowCache:
    """Reads windows through the base, one after the other, and remembers the common beginning."""

    def __init__(self, base: BaseLM, encoder: GistEncoder | None, strategy: PositionStrategy) -> None:
        self._base, self._strategy = base, strategy
        self._reader = SlotReader(base, encoder)
        self._cache = base.new_cache()
        # What the cache holds: the first of these slots, as many as it has rows. Cut back before a pass and extended after
        # it, so that a pass which fails leaves what is true.
        self._slots: Slots | None = None
        self._positions: IntArray = np.zeros(0, dtype=np.int64)
        self.stats = CacheStats()

    def plan(self, slots: Slots) -> Pass:
        """Cut the cache back to what still holds for ``slots``; what is left to forward. Computes nothing."""
        positions = positions_of(slots, self._strategy, self._base.context_length)
        passes = self._reader.passes(slots)
        keep = self._kept(slots, positions, passes)
        self._slots, self._positions = slots.take(np.arange(keep)), positions[:keep]
        return Pass(
            slots=slots,
            positions=positions,
            at=keep + np.flatnonzero(passes[keep:]),
            kept=self._cache.length,
            cache=self._cache,
        )

    def run(self, step: Pass) -> Tensor:
        """Logits float32 [V] of what follows the last slot of ``step``, alone; settles it."""
        with torch.no_grad():
            logits = self._reader.read([step.slots], step.positions[None], [step.at], last=1, cache=step.cache)
        self.settle(step)
        return logits[0, -1]

    def settle(self, step: Pass) -> None:
        """Note that ``step``, the last plan, went through the base and that its cache was extended."""
        self._slots, self._positions = step.slots, step.positions
        self.stats = CacheStats(forwarded=self.stats.forwarded + len(step), reused=self.stats.reused + step.kept)

    def memory(self, step: Pass) -> StoredMemory | None:
        """What lookup heads read beside the slots of ``step``: entries of gists [1, h, m, c] with a bias [1, 1, q, m]."""
        return self._reader.memory([step.slots], step.positions[None], [step.at])

    def read(self, slots: Slots) -> Tensor:
        """Logits float32 [V] of what follows the last slot."""
        return self.run(self.plan(slots))

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
