"""Slices with the gists of their blocks: what trains on both reads tokens and gists side by side.

Gists are made once by a frozen encoder and kept on disk. Slices overlap, so it is blocks that are encoded, each
once. Shapes: B rows, N blocks of context, g vectors per node, d width, H tokens of horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megacontext.core.node import BLOCK
from megacontext.errors import ConfigError
from megacontext.models import BaseLM, GistEncoder
from megacontext.training.row_cache import LIMIT, Arrays, Field, cached_rows
from megacontext.training.slices import Slices

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """One batch: ``ids`` int64 [B, N, 32] and ``fill`` int64 [B, N] (real tokens of each block), their ``gists`` float16
    [B, N, g, d], the ``horizon`` int64 [B, H] that follows, and ``rows`` int64 [B], which slices these are."""

    ids: Tensor
    fill: Tensor
    gists: Tensor
    horizon: Tensor
    rows: IntArray

    def __len__(self) -> int:
        return len(self.rows)


class PairedSlices:
    """The slices of a split with the level-1 gists of their blocks, memory-mapped.

    ``cache`` holds a folder for each encoder, named by its fingerprint, which is filled on construction, ``chunk`` blocks at a
    time, and goes on where it was cut off. ModelMismatch, ConfigError (too large), DatasetError as ``cached_rows``.
    """

    def __init__(
        self,
        slices: Slices,
        base: BaseLM,
        encoder: GistEncoder,
        cache: Path,
        *,
        chunk: int = 256,
        limit_bytes: int = LIMIT,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._slices = slices
        blocks = slices.start[:, None] + np.arange(slices.ids.shape[1])
        self._covered, first = np.unique(blocks, return_index=True)

        def compute(start: int, stop: int) -> Arrays:
            row, place = np.divmod(first[start:stop], slices.ids.shape[1])
            mask = torch.from_numpy(np.arange(BLOCK) < slices.fill[row, place][:, None])
            return {
                "gists": encoder.encode_blocks(base, torch.from_numpy(slices.ids[row, place].astype(np.int64)), mask).numpy()
            }

        self._gists = cached_rows(
            cache / f"gists-{encoder.fingerprint[:16]}-{slices.sha256[:8]}",
            identity={"encoder": encoder.fingerprint, "base": base.fingerprint, "slices": slices.sha256},
            fields={"gists": Field(dtype=np.float16, shape=(encoder.vectors, encoder.width))},
            rows=len(self._covered),
            compute=compute,
            chunk=chunk,
            limit_bytes=limit_bytes,
            progress=progress,
        )["gists"]

    def __len__(self) -> int:
        return len(self._slices)

    def take(self, rows: IntArray) -> Pairs:
        """The slices int64 [B] as one batch."""
        blocks = self._slices.start[rows][:, None] + np.arange(self._slices.ids.shape[1])
        return Pairs(
            ids=torch.from_numpy(self._slices.ids[rows].astype(np.int64)),
            fill=torch.from_numpy(self._slices.fill[rows].astype(np.int64)),
            gists=torch.from_numpy(np.array(self._gists[np.searchsorted(self._covered, blocks)])),
            horizon=torch.from_numpy(self._slices.horizon[rows].astype(np.int64)),
            rows=rows,
        )

    def batches(self, size: int, rng: np.random.Generator | None = None) -> Iterator[Pairs]:
        """Every slice once, ``size`` at a time (the last batch may be smaller); in order, or shuffled by ``rng``."""
        if size < 1:
            raise ConfigError(f"a batch holds at least 1 slice, not {size}")
        order = np.arange(len(self)) if rng is None else rng.permutation(len(self))
        for first in range(0, len(order), size):
            yield self.take(order[first : first + size])
