"""What an edit costs beyond the window's budget: tokens that have to be read again because of it.

A key/value cache is exact up to the first edited entry only, so an edit near the window's end is cheap, one at its beginning
makes everything behind it new, and a second edit behind that one is free. The allocator plans as ever, then asks from
where on edits are worth their price, and plans again with what comes before left alone. What was left alone is wanted again
next time: early edits wait until together they are worth it.

Shapes: n entries of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megacontext.core.allocator.plan import Plan, Reason
from megacontext.core.edits import Expand
from megacontext.core.node import BLOCK, IntArray, node_blocks
from megacontext.core.working_context import WorkingContext
from megacontext.errors import ConfigError


class RecomputeCost(Protocol):
    """Where edits are worth what they force the base to read again."""

    @property
    def name(self) -> str:
        """As users write it."""
        ...

    def first(self, window: WorkingContext, plan: Plan) -> int:
        """The first entry of ``window`` that a plan should touch, given what a ``plan`` without a price would do; n: none."""
        ...


@dataclass(frozen=True, kw_only=True)
class SuffixCost:
    """Everything behind the first edit is read again: what exact reuse pays.

    Args:
        price: of one token that is read again, in the unit of the scores.
        gists: whether gists are read again, too; key/value gists go through no layer.

    Raises:
        ConfigError: for a negative price.
    """

    price: float
    gists: bool = False
    name = "suffix"

    def __post_init__(self) -> None:
        if not self.price >= 0:
            raise ConfigError(f"the price of a token must be at least 0, not {self.price}")

    def tokens(self, window: WorkingContext) -> IntArray:
        """Tokens that an edit of each entry forces to be read, its own raw block or what it opens to included: int64[n + 1].

        Past the end nothing but open tokens is left, which cost the same whatever is edited.
        """
        own = np.where(window.lod == 0, np.int64(BLOCK), np.int64(window.vectors if self.gists else 0))
        behind = np.concatenate([np.cumsum(own[::-1])[::-1], [0]])
        opened = np.append(np.where(window.lod == 1, np.int64(BLOCK), np.int64(0)), 0)
        total: IntArray = behind + opened
        return total

    def first(self, window: WorkingContext, plan: Plan) -> int:
        """See ``RecomputeCost``. The suffix of edits whose scores exceed the price of reading from there by most."""
        chosen = [each for each in plan.ledger.chosen().decisions() if each.chosen]
        places = np.array([_entry_of(each.edit.lod, each.edit.index, window) for each in chosen], dtype=np.int64)
        gains = np.array([each.score for each in chosen])
        opens = np.array([isinstance(each.edit, Expand) for each in chosen], dtype=np.bool_)
        room = np.array([each.reason.startswith(Reason.ROOM.text) for each in chosen], dtype=np.bool_)
        known = places >= 0
        # Room has to be made in any case: what lies behind it is read again, whatever else is done.
        paid = int(places[room & known].min()) if (room & known).any() else len(window)
        tokens = self.tokens(window)
        best, worth = paid, 0.0
        for place in np.unique(places[known & ~room & opens]).tolist():
            gain = float(gains[known & ~room & (places >= place)].sum())
            gain -= self.price * max(0, int(tokens[place]) - int(tokens[paid]))
            if gain > worth:
                best, worth = place, gain
        return best


def _entry_of(lod: int, index: int, window: WorkingContext) -> int:
    return int(window.covering(np.array([node_blocks(lod, index)[0] if lod else index]))[0])
