"""How small may a window be? What a budget that is too small should have been."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from megacontext.core import Timeline, WorkingContext
from megacontext.engine.session import SessionConfig
from megacontext.errors import BudgetError


def sized(budget: int) -> SessionConfig:
    """The configuration of a session whose window has this budget, with a raw tail that leaves room."""
    return SessionConfig(budget=budget, recent=min(SessionConfig.recent, budget // 4))


def smallest(timeline: Timeline, vectors: int, most: int) -> int | None:
    """The smallest budget, up to `most`, that holds the coarsest window over a timeline, with gists of so many vectors, its raw
    tail, and what is decoded before the next refocus; None where there is none."""

    def works(budget: int) -> bool:
        try:
            config = sized(budget)
            window = WorkingContext.coarsest(timeline, budget, config.recent, vectors)
        except BudgetError:
            return False
        return window.cost + config.allocator.reserve < budget

    if not works(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return high


@contextmanager
def telling_smallest(budget: int, timeline: Timeline, vectors: int, most: int) -> Iterator[None]:
    """Whoever asks for a budget that is too small is told which one works."""
    try:
        yield
    except BudgetError as error:
        if budget >= most or (needed := smallest(timeline, vectors, most)) is None or needed <= budget:
            raise
        raise BudgetError(
            f"a budget of {budget} is too small for this memory: raise it to {needed}, which holds the coarsest view of its "
            f"{timeline.tokens:,} tokens with room for what is written next"
        ) from error
