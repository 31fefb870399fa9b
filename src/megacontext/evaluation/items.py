"""Items of the quality benchmark: a far context, a tail, and a horizon to score, cut from held-out histories."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from megacontext.core import BLOCK
from megacontext.errors import ConfigError, DatasetError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Items:
    """``ids`` int64 [n, far + tail + horizon]; ``group`` int64 [n]: what intervals are resampled by.

    ``far``, ``tail`` and ``horizon`` in tokens. ``history`` int64 [n]: the package or book that each item comes from
    (None: the group); another document's gists come from another history.
    """

    ids: IntArray
    group: IntArray
    far: int
    tail: int
    horizon: int
    history: IntArray | None = None

    def __post_init__(self) -> None:
        if self.far % BLOCK or self.tail % BLOCK or self.horizon < 1:
            raise ConfigError(f"far ({self.far}) and tail ({self.tail}) must be multiples of {BLOCK}")
        if self.ids.shape[1] != self.far + self.tail + self.horizon:
            raise ConfigError("every item holds far + tail + horizon tokens")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def context(self) -> int:
        """Tokens before the scored ones."""
        return self.far + self.tail

    @property
    def scored(self) -> IntArray:
        """The tokens to predict, int64 [n, horizon]."""
        return self.ids[:, self.context :]

    @property
    def histories(self) -> IntArray:
        """The history of each item, int64 [n]."""
        return self.group if self.history is None else self.history

    @property
    def far_copy(self) -> npt.NDArray[np.bool_]:
        """Scored tokens that occur in the far context but not in the tail: bool [n, horizon]."""
        rows = [
            np.isin(ids[self.context :], ids[: self.far]) & ~np.isin(ids[self.context :], ids[self.far : self.context])
            for ids in self.ids
        ]
        return np.stack(rows)

    @property
    def digest(self) -> str:
        """32 hex digits over geometry and tokens: figures of different items never mix."""
        facts = f"{self.far}/{self.tail}/{self.horizon}".encode()
        return hashlib.blake2b(np.ascontiguousarray(self.ids).tobytes(), digest_size=16, key=facts).hexdigest()

    def take(self, rows: IntArray) -> Items:
        """Only the items at ``rows`` int64 [k]."""
        return replace(self, ids=self.ids[rows], group=self.group[rows], history=self.histories[rows])

    def other(self, row: int) -> int:
        """An item of another history, always the same for ``row``; any other item where there is one history only."""
        others = np.flatnonzero(self.histories != self.histories[row])
        if not len(others):
            others = np.flatnonzero(np.arange(len(self)) != row)
        if not len(others):
            raise ConfigError("swapping gists needs at least two items")
        return int(others[row % len(others)])


def draw_items(
    histories: Sequence[IntArray],
    *,
    far: int,
    tail: int,
    horizon: int,
    count: int,
    seed: int,
    closed_by: int | None = None,
    align: int = 1,
) -> Items:
    """Cut ``count`` items at random places; every history is drawn from in proportion to its length.

    ``histories`` int64 [tokens] each: one package's or book's documents, joined. The same arguments give
    the same items. With ``closed_by``, the token that ends a document, the group of an item is the document of
    its first scored token; without, its history. Items start at multiples of ``align`` tokens. DatasetError
    where no history is long enough.
    """
    length = far + tail + horizon
    room = np.array([max(0, (len(history) - length) // align + 1) if len(history) >= length else 0 for history in histories])
    if not room.sum():
        raise DatasetError(f"no history holds the {length} tokens of an item: add longer documents")
    rng = np.random.default_rng((seed, 0x9A7E))
    chosen = np.sort(rng.choice(len(histories), size=count, p=room / room.sum()))
    starts = (rng.random(count) * room[chosen]).astype(np.int64) * align
    rows = [histories[history][start : start + length] for history, start in zip(chosen, starts, strict=True)]
    group = chosen
    if closed_by is not None:
        ends = [np.flatnonzero(history == closed_by) for history in histories]
        first = np.cumsum([0, *(len(end) + 1 for end in ends)])
        cuts = starts + far + tail
        pairs = zip(chosen, cuts, strict=True)
        group = np.array([first[history] + np.searchsorted(ends[history], cut) for history, cut in pairs])
    return Items(ids=np.stack(rows), group=group, far=far, tail=tail, horizon=horizon, history=chosen)
