"""What focus and assembly read: blocks and gists by index, wherever they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megacontext.core import BLOCK

IntArray = npt.NDArray[np.int64]


class BlockReader(Protocol):
    """Reads by index arrays; a storage snapshot is one. k indices in, k rows out."""

    def tokens_at(self, blocks: IntArray) -> npt.NDArray[np.uint32]:
        """Token ids uint32 [k, 32]."""

    def fill_at(self, blocks: IntArray) -> npt.NDArray[np.uint8]:
        """Real tokens of each block, uint8 [k]."""

    def documents_at(self, blocks: IntArray) -> npt.NDArray[np.uint32]:
        """Document ordinals uint32 [k]."""

    def gists_at(self, lod: int, index: IntArray) -> npt.NDArray[np.float16]:
        """Gists float16 [k, g, d] of nodes of one level."""


@dataclass(frozen=True, kw_only=True)
class ArrayReader:
    """A reader over arrays in memory: ``ids`` [N, 32], ``fill`` [N], ``documents`` [N], gists by level."""

    ids: npt.NDArray[np.uint32]
    fill: npt.NDArray[np.uint8]
    documents: npt.NDArray[np.uint32]
    gists: dict[int, npt.NDArray[np.float16]]

    def tokens_at(self, blocks: IntArray) -> npt.NDArray[np.uint32]:
        """See ``BlockReader``."""
        return self.ids[blocks]

    def fill_at(self, blocks: IntArray) -> npt.NDArray[np.uint8]:
        """See ``BlockReader``."""
        return self.fill[blocks]

    def documents_at(self, blocks: IntArray) -> npt.NDArray[np.uint32]:
        """See ``BlockReader``."""
        return self.documents[blocks]

    def gists_at(self, lod: int, index: IntArray) -> npt.NDArray[np.float16]:
        """See ``BlockReader``."""
        return self.gists[lod][index]


def real_tokens(reader: BlockReader, blocks: IntArray) -> IntArray:
    """The real tokens of ``blocks`` in order, filling left out: int64 [n]."""
    ids, fill = reader.tokens_at(blocks), reader.fill_at(blocks)
    return ids[np.arange(BLOCK) < fill[:, None]].astype(np.int64)
