"""Items of the quality benchmark: a far context, a tail, and a horizon to score, cut from held-out histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megacontext.core import BLOCK
from megacontext.errors import ConfigError, DatasetError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Items:
    """``ids`` int64 [n, far + tail + horizon]; ``group`` int64 [n]: the history that each item comes from.

    ``far``, ``tail`` and ``horizon`` in tokens. Intervals are resampled by group.
    """

    ids: IntArray
    group: IntArray
    far: int
    tail: int
    horizon: int

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
    def far_copy(self) -> npt.NDArray[np.bool_]:
        """Scored tokens that occur in the far context but not in the tail: bool [n, horizon]."""
        far, tail = self.ids[:, : self.far], self.ids[:, self.far : self.context]
        scored = self.ids[:, self.context :]
        in_far = (scored[:, :, None] == far[:, None, :]).any(-1)
        in_tail = (scored[:, :, None] == tail[:, None, :]).any(-1)
        result: npt.NDArray[np.bool_] = in_far & ~in_tail
        return result


def draw_items(histories: Sequence[IntArray], *, far: int, tail: int, horizon: int, count: int, seed: int) -> Items:
    """Cut ``count`` items at random places; every history is drawn from in proportion to its length.

    ``histories`` int64 [tokens] each: one package's or book's documents, joined. The same arguments give
    the same items. DatasetError where no history is long enough.
    """
    length = far + tail + horizon
    room = np.array([max(0, len(history) - length + 1) for history in histories])
    if not room.sum():
        raise DatasetError(f"no history holds the {length} tokens of an item: add longer documents")
    rng = np.random.default_rng((seed, 0x9A7E))
    groups = np.sort(rng.choice(len(histories), size=count, p=room / room.sum()))
    starts = (rng.random(count) * room[groups]).astype(np.int64)
    rows = [histories[group][start : start + length] for group, start in zip(groups, starts, strict=True)]
    return Items(ids=np.stack(rows), group=groups, far=far, tail=tail, horizon=horizon)
