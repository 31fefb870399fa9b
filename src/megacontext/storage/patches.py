"""Gists that were made again: of nodes that hold dead blocks beside live ones.

Rows that a reader holds never change, so what is new lies over them until a commit writes it into new objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.errors import InvalidInput
from megacontext.storage.tensors import F16, I64, Array

# For each level from 2 on, int64 [m] indices of nodes, ascending, and their gists float16 [m, g, d].
Patches = Mapping[int, tuple[I64, F16]]


class Overlay:
    """New rows by level and node. Immutable: `over` makes another one."""

    def __init__(self, levels: Patches | None = None) -> None:
        self._levels: dict[int, tuple[I64, F16]] = dict(levels or {})

    def __bool__(self) -> bool:
        return bool(self._levels)

    def __iter__(self) -> Iterator[tuple[int, I64, F16]]:
        for lod, (index, rows) in sorted(self._levels.items()):
            yield lod, index, rows

    def over(self, patches: Patches) -> Overlay:
        """These rows with `patches` in front of them."""
        levels = dict(self._levels)
        for lod, (index, rows) in patches.items():
            old = levels.get(lod)
            if old is not None:
                keep = ~np.isin(old[0], index)
                index, rows = np.concatenate([old[0][keep], index]), np.concatenate([old[1][keep], rows])
                order = np.argsort(index)
                index, rows = index[order], rows[order]
            levels[lod] = index, rows
        return Overlay(levels)

    def row(self, lod: int, index: int) -> F16 | None:
        """The new row of a node, if it has one."""
        known, rows = self._levels.get(lod, (None, None))
        if known is None or rows is None:
            return None
        at = int(np.searchsorted(known, index))
        return rows[at] if at < len(known) and known[at] == index else None

    def on(self, lod: int, index: I64, rows: Array) -> Array:
        """`rows` [k, g, d] of the nodes at int64 [k] indices, with the new ones in their places."""
        known = self._levels.get(lod)
        if known is None or not len(index):
            return rows
        at = np.minimum(np.searchsorted(known[0], index), len(known[0]) - 1)
        found = known[0][at] == index
        if not bool(found.any()):
            return rows
        changed = rows.copy()
        changed[found] = known[1][at[found]]
        changed.setflags(write=False)
        return changed

    def on_range(self, lod: int, start: int, stop: int, rows: Array) -> Array:
        """As `on`, for nodes `start:stop`."""
        return self.on(lod, np.arange(start, stop, dtype=np.int64), rows) if lod in self._levels else rows


def checked(patches: Patches | None, shape: tuple[int, int] | None, blocks: int) -> dict[int, tuple[I64, F16]]:
    """Patches for complete nodes of a timeline of `blocks` blocks; raises InvalidInput. `shape` [g, d] of a gist."""
    given = dict(patches or {})
    if given and shape is None:
        raise InvalidInput("this writer was opened without a gist layer; it takes no gists")
    for lod, (index, rows) in given.items():
        fits = shape is not None and rows.shape == (len(index), *shape) and rows.dtype == np.float16
        if lod < 2 or not len(index) or not fits or index.dtype != np.int64 or not bool((np.diff(index) > 0).all()):
            raise InvalidInput(f"gists made again of level {lod} are float16 [m, g, d] for ascending int64 [m] nodes")
        if index[0] < 0 or index[-1] >= blocks // BLOCK ** (lod - 1):
            raise InvalidInput(f"no node {int(index[-1])} of level {lod} is complete")
        if not bool(np.isfinite(rows).all()):
            raise InvalidInput(f"gists made again of level {lod} hold NaN or infinity")
    return given


def to_arrays(patches: Patches) -> dict[str, Array]:
    """How a journal record carries them."""
    arrays: dict[str, Array] = {}
    for lod, (index, rows) in patches.items():
        arrays[f"node{lod}"], arrays[f"new{lod}"] = index, np.ascontiguousarray(rows)
    return arrays


def from_arrays(arrays: Mapping[str, Array]) -> dict[int, tuple[I64, F16]]:
    """The inverse of `to_arrays`, among other arrays."""
    lods = [int(name[4:]) for name in arrays if name.startswith("node")]
    return {lod: (arrays[f"node{lod}"].astype(np.int64), arrays[f"new{lod}"]) for lod in lods}
