"""Arithmetic on tree nodes and window entries; everything else in the package is built on it.

A *node* ``(lod, index)`` with ``lod >= 1`` covers blocks ``[index * 32**(lod-1), (index+1) *
32**(lod-1))``. A window *entry* is a node of lod >= 1 (its gist) or ``(0, block)``: that block as
raw tokens. The raw block is the only child of the block's LOD1 node, so one pair of functions
serves both kinds.

Scalar functions take and return ints; ``*_of`` functions take int8/int64 arrays of one shape.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
"""Tokens in a block, and children of a node."""

MAX_LOD = 12
"""Deepest level that int64 token positions can address: 32**12 tokens = 2**60."""

_BITS = 5  # log2(BLOCK)

Node = tuple[int, int]
BoolArray = NDArray[np.bool_]
LodArray = NDArray[np.int8]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def node_blocks(lod: int, index: int) -> tuple[int, int]:
    """The blocks ``(start, stop)`` that a node or entry covers."""
    shift = _BITS * max(lod - 1, 0)
    return index << shift, (index + 1) << shift


def node_tokens(lod: int, index: int) -> tuple[int, int]:
    """The token positions ``(start, stop)`` that a node or entry covers."""
    start, stop = node_blocks(lod, index)
    return start * BLOCK, stop * BLOCK


def parent(lod: int, index: int) -> Node:
    """The node one level up; a raw block's parent is its LOD1 node."""
    return (1, index) if lod == 0 else (lod + 1, index >> _BITS)


def children(lod: int, index: int) -> tuple[int, range]:
    """``(lod of the children, their indexes)``, dead ones included; lod must be >= 1."""
    if lod == 1:
        return 0, range(index, index + 1)
    return lod - 1, range(index << _BITS, (index + 1) << _BITS)


def ancestor(block: int, lod: int) -> int:
    """The index of the node of ``lod`` (>= 1) that covers a block."""
    return block >> _BITS * (lod - 1)


def top_lod(blocks: int) -> int:
    """The highest lod that has a complete node in ``blocks`` blocks; 0 if there are none."""
    return (blocks.bit_length() - 1) // _BITS + 1 if blocks else 0


def span_blocks_of(lod: LodArray) -> IntArray:
    """How many blocks each entry covers, int64."""
    return np.int64(1) << _shifts(lod)


def first_blocks_of(lod: LodArray, index: IntArray) -> IntArray:
    """The first block of each entry, int64."""
    return index << _shifts(lod)


def parents_of(lod: LodArray, index: IntArray) -> IntArray:
    """The index of each entry's parent, int64; its lod is one more."""
    return np.where(lod == 0, index, index >> _BITS)


def coarsest_nodes(blocks: int) -> tuple[LodArray, IntArray]:
    """The fewest complete nodes that tile blocks ``[0, blocks)``, in order: ``blocks`` in base 32.

    At most 31 nodes a level, so fewer than 31 * MAX_LOD whatever the history's length.
    """
    lods: list[LodArray] = [np.empty(0, np.int8)]
    indexes: list[IntArray] = [np.empty(0, np.int64)]
    start = 0
    for lod in range(top_lod(blocks), 0, -1):
        shift = _BITS * (lod - 1)
        index = np.arange(start >> shift, blocks >> shift, dtype=np.int64)
        lods.append(np.full(index.size, lod, np.int8))
        indexes.append(index)
        start = blocks >> shift << shift
    return np.concatenate(lods), np.concatenate(indexes)


def _shifts(lod: LodArray) -> IntArray:
    return _BITS * np.maximum(lod.astype(np.int64) - 1, 0)
