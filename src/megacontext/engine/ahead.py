"""Work that is done a little ahead, in a thread of its own: the next pieces of texts are cut while the last ones are written.

Order, results and errors are those of doing one thing after the other; what is held is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")
Piece = TypeVar("Piece")

MOST_ITEMS = 16
MOST_WEIGHT = 2**20
"""How many items, and of what weight together, wait at most; a heavier one waits alone."""


def ahead(
    items: Iterable[Item], pieces: Callable[[Item], Iterator[Piece]], weight: Callable[[Item], int]
) -> Iterator[tuple[Item, Iterator[Piece]]]:
    """Each item with its ``pieces``, of which the next one is made while the caller works on the last.

    ``items`` are taken in the caller's thread, some ahead; ``pieces`` run in another, one at a time and in order. An error in
    either comes when its turn has come. Given up early, it waits for the piece in the making and makes no more.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    waiting: deque[tuple[Item, _Pulled[Piece]]] = deque()
    weighs = 0
    try:
        for item in items:
            waiting.append((item, _Pulled(pool, pieces(item))))
            weighs += weight(item)
            while len(waiting) > MOST_ITEMS or (weighs > MOST_WEIGHT and len(waiting) > 1):
                weighs -= weight(waiting[0][0])
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


class _Pulled(Generic[Piece]):
    """An iterator whose next piece is always in the making."""

    def __init__(self, pool: Executor, pieces: Iterator[Piece]) -> None:
        self._pool, self._pieces = pool, pieces
        self._coming = pool.submit(self._make)

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        made = self._coming.result()
        if not made:
            raise StopIteration
        self._coming = self._pool.submit(self._make)
        return made[0]

    def _make(self) -> list[Piece]:
        """The next piece; none at the end."""
        return list(islice(self._pieces, 1))
