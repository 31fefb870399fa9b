"""What of a key/value cache is kept when the window changes.

``Exact`` keeps what lies before the first changed slot: logits are those of a fresh cache. ``Patched`` keeps every raw slot
that is still in the window, turns its keys to where it stands now, and computes only what came in, at its true place. What
it keeps has seen what is no longer there, and not what came in between, so it is an approximation with a price in NLL
(``evaluation.reuse`` measures it). For the idea of patching cached chunks see CacheBlend, https://arxiv.org/abs/2405.16444.

Shapes: n slots of the window, T rows of the cache, k rows kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megacontext.engine.assemble import IntArray, Slots
from megacontext.errors import ConfigError

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """What a cache holds: row r is the slot ``rows[r]`` of ``slots``, its key at position ``places[r]``; int64 [T] both.

    ``positions`` int64 [n] are those of all ``slots``, also of gists that have no row; the first ``exact`` of the slots are
    as a fresh cache has them.
    """

    slots: Slots
    positions: IntArray
    rows: IntArray
    places: IntArray
    exact: int

    def common(self, slots: Slots, positions: IntArray) -> int:
        """How many leading slots are the same, and at the same positions."""
        same = self.slots.common_prefix(slots)
        differs = self.positions[:same] != positions[:same]
        return int(differs.argmax()) if differs.any() else same


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """Rows of a cache to keep, in this order: ``rows`` int64 [k]; ``slots`` int64 [k]: which slots of the new window they are.

    ``exact``: leading slots of the new window that a fresh cache would have just so once the rest is computed.
    """

    rows: IntArray
    slots: IntArray
    exact: int


NOTHING = Kept(rows=np.zeros(0, dtype=np.int64), slots=np.zeros(0, dtype=np.int64), exact=0)


class Reuse(Protocol):
    """How much is kept. Called with what is held and the window to come; changes nothing."""

    @property
    def name(self) -> str:
        """As users write it."""
        ...

    @property
    def moves(self) -> bool:
        """Whether it needs a base whose cache can be put in another order and to other positions."""
        ...

    def keep(self, held: Held, slots: Slots, positions: IntArray, passes: BoolArray) -> Kept:
        """Which rows are kept for ``slots`` at ``positions``; ``passes`` bool [n]: which slots go through the base."""
        ...


@dataclass(frozen=True, kw_only=True)
class Exact:
    """What lies before the first changed slot."""

    name = "exact"
    moves = False

    def keep(self, held: Held, slots: Slots, positions: IntArray, passes: BoolArray) -> Kept:
        """See ``Reuse``."""
        common = min(held.common(slots, positions), held.exact)
        if common == len(held.slots):
            return _but_the_newest(_everything(held, len(slots)), passes)
        rows = np.flatnonzero(held.rows < common)
        rows = rows[np.argsort(held.rows[rows], kind="stable")]
        return _but_the_newest(Kept(rows=rows, slots=held.rows[rows], exact=len(slots)), passes)


@dataclass(frozen=True, kw_only=True)
class Patched:
    """Every raw slot that stays, but for the newest ``again`` ones, which are computed once more after an edit.

    ``turn`` False leaves keys where they stood: a control, which says what the turning is worth.
    """

    again: int = 0
    turn: bool = True
    moves = True

    def __post_init__(self) -> None:
        if self.again < 0:
            raise ConfigError(f"again counts slots that are computed once more, so it is not {self.again}")

    @property
    def name(self) -> str:
        """As users write it."""
        return f"patched-{self.again}" if self.turn else f"unturned-{self.again}"

    def keep(self, held: Held, slots: Slots, positions: IntArray, passes: BoolArray) -> Kept:
        """See ``Reuse``."""
        common = held.common(slots, positions)
        if common == len(held.slots):  # nothing but new slots behind
            return _but_the_newest(_everything(held, len(slots) if held.exact == common else held.exact), passes)
        rows, found = _same(held, slots)
        if self.again:
            newest = np.flatnonzero(passes)[-self.again :]
            rows, found = rows[found < newest[0]], found[found < newest[0]]
        return _but_the_newest(Kept(rows=rows, slots=found, exact=min(common, held.exact)), passes)


@dataclass(frozen=True, kw_only=True)
class Alone:
    """Far blocks are read alone, so what they hold depends on nothing else in the window and is kept exactly, wherever it
    moves; of the raw tail, what lies before the first change. Block-Attention (https://arxiv.org/abs/2409.15355) with a
    frozen base.

    Exact, but of another reading: a fresh cache that reads far blocks alone has the same logits, one that reads everything
    causally has not.
    """

    name = "alone"
    moves = True
    alone = True

    def keep(self, held: Held, slots: Slots, positions: IntArray, passes: BoolArray) -> Kept:
        """See ``Reuse``."""
        rows, found = _same(held, slots)
        was_far = held.slots.start[held.rows[rows]] < held.slots.tail
        is_far = slots.start[found] < slots.tail
        # A block that leaves the tail is read once more, alone, and all that saw it, too.
        same_tail = held.slots.tail == slots.tail
        stays = (was_far & is_far) | (same_tail & ~is_far & (found < held.common(slots, positions)))
        return _but_the_newest(Kept(rows=rows[stays], slots=found[stays], exact=len(slots)), passes)


def _everything(held: Held, exact: int) -> Kept:
    return Kept(rows=np.arange(len(held.rows)), slots=held.rows, exact=exact)


def _same(held: Held, slots: Slots) -> tuple[IntArray, IntArray]:
    """Rows of the cache whose slot is in ``slots``, and where: int64 [k] both. No two slots of a window start in one place."""
    mine = held.slots
    start = mine.start[held.rows]
    at = np.minimum(np.searchsorted(slots.start, start), len(slots) - 1)
    same = slots.start[at] == start
    for ours, theirs in ((mine.stop, slots.stop), (mine.token, slots.token)):
        same &= ours[held.rows] == theirs[at]
    rows = np.flatnonzero(same)
    return rows, at[rows]


def _but_the_newest(kept: Kept, passes: BoolArray) -> Kept:
    """The newest slot that passes is always computed: its logits are wanted."""
    newest = int(np.flatnonzero(passes)[-1]) if passes.any() else 0
    stays = kept.slots < newest
    return kept if stays.all() else Kept(rows=kept.rows[stays], slots=kept.slots[stays], exact=kept.exact)


EXACT = Exact()
# Measured on validation packages at intervals of 8 to 128 tokens (docs/log.md, 2026-11-24): no worse than exact reuse, for an
# eighth of its token-forwards.
REUSE = Patched(again=16)
