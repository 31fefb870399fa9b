"""Search by gists, coarse to fine: which blocks have gists like those of a query?

A query's gists and a node's are sets of unit vectors, *entries*; how alike they are is, averaged over the query's
entries, the cosine with the nearest of the node's (MaxSim: Khattab and Zaharia, *ColBERT*, 2020). Higher is more alike;
1 is the same.

The search goes down the tree with a beam: at each level it looks at the children of the `beam` best nodes of the level
above, and at those complete nodes that have no parent yet (at most 31); at level 1 it ranks what it looked at. So it reads
at most (32 · beam + 31) gists a level, however long the history is: all blocks of a memory of up to a million tokens, with the
beam of 1,024 that is the default, and of a longer one what the gists above lead to. These lead poorly where they hold few of
the entries below them (a narrow beam finds half of what reading every block does), hence the width. A node that holds
something the reader is denied has no gist for him: it is opened without being looked at (the `beam` newest of them).

Shapes: k nodes, g vectors a node of width d, e entries a node of width w, q entries of a query.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megacontext.core.node import BLOCK, MAX_LOD, IntArray
from megacontext.errors import ConfigError
from megacontext.index.bm25 import I64
from megacontext.index.disposable import Keep
from megacontext.index.fulltext import NOTHING, Hits, visible
from megacontext.storage.gists import Layer
from megacontext.storage.snapshot import Snapshot

F16 = NDArray[np.float16]
F32 = NDArray[np.float32]
# Gists float16 [k, g, d] to entries float32 [k, e, w] of length 1, or 0 where there is none.
Entries = Callable[[F16], F32]

_CHILDREN = np.arange(BLOCK, dtype=np.int64)
_PIECE = 256


@dataclass(frozen=True, kw_only=True)
class GistSearchConfig:
    """`beam`: how many nodes of a level are opened, so that at most 32 times as many gists are read; None looks at every block
    instead, at a cost that grows with them."""

    beam: int | None = 1024

    def __post_init__(self) -> None:
        if self.beam is not None and self.beam < 1:
            raise ConfigError(f"a beam opens at least one node of each level, not {self.beam}")


class GistHits(NamedTuple):
    """Blocks found, best first, and how many gists were `read` to find them."""

    hits: Hits
    read: int


def search(
    snapshot: Snapshot,
    layer: Layer,
    query: F32,
    entries: Entries,
    limit: int,
    *,
    allowed: Keep | None = None,
    config: GistSearchConfig | None = None,
) -> GistHits:
    """The at most `limit` blocks that a layer's gists show to be most alike `query` [q, w], of those that are live, not
    denied and `allowed` (a filter, no secret: gists above a block may hold what it excludes)."""
    beam = (config or GistSearchConfig()).beam
    if limit < 1 or not layer.blocks or not len(query):
        return GistHits(NOTHING, 0)
    descent = _Descent(snapshot, layer, query, entries, allowed)
    everything = np.arange(layer.blocks, dtype=np.int64)
    nodes = descent.leaves(beam) if beam is not None else descent.present(1, everything)
    likeness = descent.likeness(1, nodes)
    order = np.lexsort((-nodes, -likeness))[:limit]
    return GistHits(Hits(nodes[order], likeness[order]), descent.read)


class _Descent:
    """One search through one layer."""

    def __init__(self, snapshot: Snapshot, layer: Layer, query: F32, entries: Entries, allowed: Keep | None) -> None:
        self._timeline, self._layer = snapshot.timeline(), layer
        self._query, self._entries = query, entries
        self._passing: I64 | None = None
        if allowed is not None and (keep := visible(snapshot, allowed)) is not None:
            passes = keep(np.arange(layer.blocks, dtype=np.int64))
            self._passing = np.concatenate([[0], np.cumsum(passes, dtype=np.int64)])
        self.read = 0

    def leaves(self, beam: int) -> IntArray:
        """The blocks that the beam leads to."""
        top = next(lod for lod in range(MAX_LOD, 0, -1) if self._layer.count(lod))
        below = np.zeros(0, np.int64)
        for lod in range(top, 1, -1):
            nodes = self.present(lod, self._level(lod, below))
            held = self._timeline.denied_mask(np.full(len(nodes), lod, np.int8), nodes)
            seen = nodes[~held]
            # Alone, all are opened, whatever they look like.
            if len(seen) > beam:
                seen = seen[np.argsort(-self.likeness(lod, seen), kind="stable")[:beam]]
            below = np.concatenate([nodes[held][-beam:], seen])
        return self.present(1, self._level(1, below))

    def present(self, lod: int, nodes: IntArray) -> IntArray:
        """Those nodes of a level in which something may be found, ascending."""
        nodes = np.sort(nodes)
        width = BLOCK ** (lod - 1)
        nodes = nodes[~self._timeline.absent_mask(np.full(len(nodes), lod, np.int8), nodes)]
        if self._passing is not None:
            nodes = nodes[self._passing[(nodes + 1) * width] > self._passing[nodes * width]]
        if lod == 1:
            nodes = nodes[~self._timeline.pruned_mask(np.zeros(len(nodes), np.int8), nodes)]
        return nodes

    def likeness(self, lod: int, nodes: IntArray) -> F32:
        """How alike nodes of a level and the query are, float32 [k]."""
        self.read += len(nodes)
        found = [np.zeros(0, np.float32)]
        for start in range(0, len(nodes), _PIECE):
            part = self._entries(self._layer.gists_at(lod, nodes[start : start + _PIECE]))
            cosines = (part.reshape(-1, part.shape[-1]) @ self._query.T).reshape(*part.shape[:2], -1)
            cosines[~part.any(axis=-1)] = -1
            found.append(cosines.max(axis=1).mean(axis=1, dtype=np.float32))
        return np.concatenate(found)

    def _level(self, lod: int, opened: IntArray) -> IntArray:
        """The children at a level of opened nodes above, and the nodes that have no complete parent."""
        children = (opened[:, None] * BLOCK + _CHILDREN).ravel()
        orphans = np.arange(self._layer.count(lod + 1) * BLOCK, self._layer.count(lod), dtype=np.int64)
        return np.concatenate([children, orphans])


def unit(vectors: F32) -> F32:
    """Vectors [..., w] at length 1; those of length 0 stay."""
    length = np.sqrt(np.einsum("...w,...w->...", vectors, vectors))
    scaled: F32 = vectors * np.divide(1, length, out=np.zeros_like(length), where=length > 0)[..., None]
    return scaled


def vectors(gists: F16) -> F32:
    """The entries of embedded gists [k, g, d]: their vectors."""
    return unit(gists.astype(np.float32))
