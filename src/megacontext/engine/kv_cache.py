"""Keys and values across refocus: what is kept (``engine.reuse`` decides), what has to be computed, and how.

``plan`` says what has to go through the base, ``run`` does it, ``settle`` notes that it was done. A scheduler plans for
many sessions, forwards their passes together and settles each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megacontext.engine.assemble import IntArray, Slots, positions_of
from megacontext.engine.reuse import EXACT, NOTHING, Held, Kept, Reuse
from megacontext.engine.slot_reader import SlotReader
from megacontext.errors import UnsupportedModel
from megacontext.models import BaseLM, GistEncoder
from megacontext.models import cache as kv
from megacontext.models.kv_memory import StoredMemory
from megacontext.models.positions import PositionStrategy

MakeCache = Callable[[], kv.KeyValueCache]


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Slots that went through the base, and slots that the cache spared, since the session began.

    ``passes`` of more than one slot, and those of them that kept nothing: ``prefills``.
    """

    forwarded: int = 0
    reused: int = 0
    passes: int = 0
    prefills: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Pass:
    """What has to go through the base before the token behind ``slots`` can be predicted.

    ``positions`` int64 [n] of all slots; ``at`` int64 [q ≥ 1]: the slots to forward, ascending, the newest one last; the
    logits wanted are the last one's. ``cache`` holds the slots ``held`` int64 [k], one row each, at positions ``places``
    int64 [k], and is extended by the pass. ``mask`` bool [q, k + q]: which of them each slot sees; None where that is all
    before it, as cached. ``blind`` bool [q]: slots that lookup heads show no gists (None: there are none). Valid until the next
    plan for the same cache.
    """

    slots: Slots
    positions: IntArray
    at: IntArray
    held: IntArray
    places: IntArray
    cache: kv.KeyValueCache
    exact: int
    mask: Tensor | None = None
    blind: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """Slots to forward."""
        return len(self.at)

    @property
    def kept(self) -> int:
        """Rows that are kept."""
        return len(self.held)

    @property
    def first(self) -> int:
        """The first slot that has to be computed: where the window is dirty from."""
        return int(self.at[0])


class WindowCache:
    """Reads windows through the base, one after the other, and keeps what ``reuse`` lets it keep between them."""

    def __init__(
        self,
        base: BaseLM,
        encoder: GistEncoder | None,
        strategy: PositionStrategy,
        *,
        reuse: Reuse = EXACT,
        make: MakeCache | None = None,
    ) -> None:
        self._base, self._strategy = base, strategy
        self._reader = SlotReader(base, encoder)
        self._make = make or base.new_cache
        self.unsupported = why_not_moved(base) if reuse.moves else None
        self.reuse: Reuse = EXACT if self.unsupported else reuse
        # Cut back before a pass and extended after it, so that a pass which fails leaves what is true.
        self._held: Held | None = None
        self._cache: kv.KeyValueCache | None = None
        self.stats = CacheStats()

    def house(self, make: MakeCache | None) -> None:
        """Forget everything; from now on caches come from ``make`` (None: the base)."""
        self._held, self._cache, self._make = None, None, make or self._base.new_cache

    def passes(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Which slots go through the base at all: bool [n]. Key/value gists do not."""
        return self._reader.passes(slots)

    def plan(self, slots: Slots, *, exact: bool = False) -> Pass:
        """Cut the cache back to what is kept for ``slots``; what is left to forward. Computes nothing but new places of keys.

        ``exact`` keeps only what a fresh cache would have, whatever ``reuse`` allows.
        """
        positions = positions_of(slots, self._strategy, self._base.context_length)
        passes = self._reader.passes(slots)
        alone = getattr(self.reuse, "alone", False)
        reuse = EXACT if exact and not alone else self.reuse
        kept = reuse.keep(self._held, slots, positions, passes) if self._held is not None else NOTHING
        cache, places = self._cut(kept, positions, turn=getattr(reuse, "turn", True))
        todo = passes.copy()
        todo[kept.slots] = False
        at = np.flatnonzero(todo)
        fresh = kept.exact if len(kept.rows) else len(slots)
        blind = slots.start[at] < slots.tail if alone else np.zeros(len(at), dtype=np.bool_)
        self._held = Held(slots=slots, positions=positions, rows=kept.slots, places=places, exact=min(fresh, int(at[0])))
        return Pass(
            slots=slots,
            positions=positions,
            at=at,
            held=kept.slots,
            places=places,
            cache=cache,
            exact=fresh,
            mask=_mask(kept.slots, at, slots, blind),
            blind=blind if blind.any() else None,
        )

    def run(self, step: Pass) -> Tensor:
        """Logits float32 [V] of what follows ``step``, the last plan, computed alone and settled."""
        return self.forward(step)[-1]

    def forward(self, step: Pass, last: int = 1) -> Tensor:
        """The same of what follows each of the ``last`` newest slots, all of which are to be forwarded: [last, V]."""
        with torch.no_grad():
            logits = self._reader.read(
                [step.slots],
                step.positions[None],
                [step.at],
                last=last,
                cache=step.cache,
                mask=step.mask,
                blind=[step.blind] if step.blind is not None else None,
            )
        self.settle(step)
        return logits[0]

    def settle(self, step: Pass) -> None:
        """Note that ``step``, the last plan, went through the base and that its cache was extended."""
        self._held = Held(
            slots=step.slots,
            positions=step.positions,
            rows=np.concatenate([step.held, step.at]),
            places=np.concatenate([step.places, step.positions[step.at]]),
            exact=step.exact,
        )
        many, stats = len(step) > 1, self.stats
        self.stats = replace(
            stats,
            forwarded=stats.forwarded + len(step),
            reused=stats.reused + step.kept,
            passes=stats.passes + many,
            prefills=stats.prefills + (many and not step.kept),
        )

    def memory(self, step: Pass) -> StoredMemory | None:
        """What lookup heads read beside the slots of ``step``: entries of gists [1, h, m, c] with a bias [1, 1, q, m]."""
        blind = [step.blind] if step.blind is not None else None
        return self._reader.memory([step.slots], step.positions[None], [step.at], blind)

    def read(self, slots: Slots, *, exact: bool = False) -> Tensor:
        """Logits float32 [V] of what follows the last slot."""
        return self.run(self.plan(slots, exact=exact))

    def _cut(self, kept: Kept, positions: IntArray, *, turn: bool) -> tuple[kv.KeyValueCache, IntArray]:
        """The cache with only the rows ``kept``, in that order and at the positions of their slots; and those, int64 [k]."""
        cache, held = self._cache, self._held
        # Forgotten until it is cut: what is interrupted between two layers is no cache any more.
        self._cache = self._held = None
        if cache is None or held is None or not len(kept.rows) or not self._holds(cache, kept.rows):
            self._cache = self._make()
            return self._cache, np.zeros(0, dtype=np.int64)
        if not np.array_equal(kept.rows, np.arange(len(kept.rows))):
            kv.choose(cache, torch.from_numpy(kept.rows))
        elif len(kept.rows) < cache.length:
            kv.crop(cache, len(kept.rows))
        places = held.places[kept.rows]
        if turn and self.reuse.moves and not np.array_equal(places, positions[kept.slots]):
            by = torch.from_numpy(positions[kept.slots] - places).to(self._base.device)
            kv.move(cache, by, self._base.rotary, self._base.turned_layers)
            places = positions[kept.slots]
        self._cache = cache
        return cache, places

    @staticmethod
    def _holds(cache: kv.KeyValueCache, rows: IntArray) -> bool:
        return len(rows) == cache.length or kv.is_croppable(cache)


def why_not_moved(base: BaseLM) -> str | None:
    """Why keys of ``base`` cannot be put in another order or to other positions; None where they can."""
    if not all(base.full_attention):
        return f"{base.family} has layers with sliding windows, which count slots in the order of the cache"
    try:
        turns = base.rotary.turns
    except UnsupportedModel as error:
        return str(error)
    return None if turns else f"{base.family} adds positions to its input, so a key cannot be put elsewhere"


def _mask(held: IntArray, at: IntArray, slots: Slots, blind: npt.NDArray[np.bool_]) -> Tensor | None:
    """Who sees whom, bool [q, k + q], by order of the window, ``blind`` slots only their own entry; None where the order of
    the cache says the same."""
    in_order = not len(held) or int(held.max()) < int(at[0])
    if in_order and not blind.any():
        return None
    shown = np.concatenate([held, at])
    sees: npt.NDArray[np.bool_] = shown[None] <= at[:, None]
    sees &= ~blind[:, None] | (slots.entry[shown][None] == slots.entry[at][:, None])
    return torch.from_numpy(sees)
