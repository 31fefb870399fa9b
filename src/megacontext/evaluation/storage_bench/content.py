"""What is written: seeded blocks with random gists of every level, no two alike, so that nothing is stored once for all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.storage import LayerSpec
from megacontext.storage.gists import NewGists, nodes
from megacontext.storage.tensors import F16, U32, Array

_LARGEST_FINITE = 0x7BFF
VOCABULARY = 50_000


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Blocks of one document: ``ids`` uint32 [n, 32], where they start in a text, and the gists that they complete."""

    ids: U32
    chars: U32
    lines: U32
    gists: NewGists

    def columns(self) -> dict[str, Array]:
        """What a plain file keeps of it: ids, gists of each level, and 13 bytes a block that say where it comes from."""
        count = len(self.ids)
        return {
            "ids": self.ids,
            **{f"lod{lod}": rows for lod, (_, rows) in self.gists.items()},
            "chars": self.chars,
            "lines": self.lines,
            "doc": np.zeros(count, np.uint32),
            "fill": np.full(count, BLOCK, np.uint8),
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all of that."""
        return sum(array.nbytes for array in self.columns().values())


class Content:
    """Makes batches behind each other; the next one begins at block ``at``."""

    def __init__(self, spec: LayerSpec, seed: int, at: int = 0) -> None:
        self.spec = spec
        self._random = np.random.default_rng(seed)
        self.at = at

    def batch(self, count: int) -> Batch:
        """The next ``count`` blocks."""
        start, self.at = self.at, self.at + count
        gists: dict[int, tuple[int, F16]] = {}
        lod = 1
        while new := nodes(self.at, lod) - nodes(start, lod):
            gists[lod] = nodes(start, lod), self.gists(new)
            lod += 1
        where = np.arange(count, dtype=np.uint32)
        ids = self._random.integers(0, VOCABULARY, (count, BLOCK), dtype=np.uint32)
        return Batch(ids=ids, chars=(where + start) * 120, lines=(where + start) * 4 + 1, gists=gists)

    def gists(self, count: int) -> F16:
        """Finite random gists, float16 [count, g, d]."""
        raw = np.frombuffer(self._random.bytes(2 * count * self.spec.vectors * self.spec.width), np.uint16)
        rows: F16 = (raw & _LARGEST_FINITE & 0xBFFF).view(np.float16).reshape(count, *self.spec.shape)
        return rows

    def batches(self, count: int, size: int) -> Iterator[Batch]:
        """``count`` blocks in batches of at most ``size``."""
        for low in range(0, count, size):
            yield self.batch(min(size, count - low))
