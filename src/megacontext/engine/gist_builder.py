"""From new blocks to the gists of every node that they complete, at every level.

The one place where the tree's levels are built: for ingest, for a conversation that grows by single blocks, and for laying
a new layer over old tokens. What comes out depends on the tokens and the stored gists only, bit for bit, never on the
pieces in which blocks come.

Shapes: n new blocks, m nodes of a level, g vectors per node, d width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from megacontext.core import BLOCK, Timeline
from megacontext.errors import ModelMismatch
from megacontext.models.base_lm import BaseLM
from megacontext.models.gistnet import GistEncoder
from megacontext.storage import LayerSpec, Patches, Snapshot
from megacontext.storage.patches import Overlay

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
F16 = NDArray[np.float16]
I64 = NDArray[np.int64]
NewGists = dict[int, tuple[int, F16]]

# Embeddings of this many blocks are held at once: 256 blocks of width 4,096 in float32 are 134 MB.
PIECE_BLOCKS = 256
_SLOTS = np.arange(BLOCK, dtype=np.uint8)


class StoredGists(Protocol):
    """What is there already: a `storage.Layer`, or a snapshot with one."""

    @property
    def blocks(self) -> int:
        """Complete blocks of the timeline, all of which have gists."""
        ...

    def gists(self, lod: int, start: int, stop: int) -> F16:
        """Gists of nodes `start:stop` of a level, float16 [m, g, d]."""
        ...


class StoredNodes(StoredGists, Protocol):
    """What is there already, also by single nodes."""

    def gists_at(self, lod: int, index: I64) -> F16:
        """Gists of the nodes at int64 [k] indices of a level, float16 [k, g, d]."""
        ...


class NoGists:
    """The start of a timeline: nothing is stored yet."""

    blocks = 0

    def gists(self, lod: int, start: int, stop: int) -> F16:
        """There are none."""
        raise ModelMismatch(f"gists {start}:{stop} of level {lod} are asked of an empty layer")


class GistBuilder:
    """Builds levels with one base (for token embeddings) and one encoder. Keeps nothing between calls."""

    def __init__(self, base: BaseLM, encoder: GistEncoder) -> None:
        self._base, self._encoder = base, encoder
        self.spec = LayerSpec(fingerprint=encoder.fingerprint, vectors=encoder.vectors, width=encoder.width)

    def extend(
        self,
        stored: StoredGists,
        ids: U32,
        fill: U8 | None = None,
        *,
        timeline: Timeline | None = None,
        level_one: F16 | None = None,
    ) -> NewGists:
        """The gists of exactly the nodes that blocks `ids` [n, 32] complete when they follow what is `stored`.

        Returns {lod: (index of the first node, float16 [m, g, d])}, levels without a new node left out: what
        `BranchWriter` takes. `fill` [n] are the real tokens of each block (None: 32); the rest is masked, and so are wholly
        dead children, where the `timeline` has any. `level_one` [n, g, d], from `encode_blocks`, saves making it again.
        """
        first, total = stored.blocks, stored.blocks + len(ids)
        if not len(ids):
            return {}
        gists: NewGists = {1: (first, self.encode_blocks(ids, fill) if level_one is None else level_one)}
        lod = 2
        while total >> _shift(lod):
            start, stop = first >> _shift(lod), total >> _shift(lod)
            if start < stop:
                gists[lod] = (start, self._parents(stored, gists, lod, start, stop, timeline))
            lod += 1
        return gists

    def remake(self, stored: StoredNodes, timeline: Timeline, spans: Iterable[tuple[int, int]]) -> Patches:
        """The gists, made again from live children, of the stored nodes above level 1 that hold blocks of `spans` (ranges of
        blocks, dead in `timeline`); zeros where nothing in a node lives."""
        ranges = [np.arange(start, stop, dtype=np.int64) for start, stop in spans if start < stop]
        patches: dict[int, tuple[I64, F16]] = {}
        if not ranges:
            return patches
        touched, lod = np.unique(np.concatenate(ranges)), 2
        while stored.blocks >> _shift(lod):
            touched = np.unique(touched >> _shift(2))
            touched = touched[touched < stored.blocks >> _shift(lod)]
            if not len(touched):
                break
            index = (touched[:, None] * BLOCK + np.arange(BLOCK)).ravel()
            children = Overlay(patches).on(lod - 1, index, stored.gists_at(lod - 1, index))
            patches[lod] = touched, self._encode_families(children, index, lod, timeline)
            lod += 1
        return patches

    def encode_blocks(self, ids: U32, fill: U8 | None = None) -> F16:
        """LOD1 gists [n, g, d] of blocks `ids` [n, 32]; any number of documents may be encoded together. Blank blocks, which
        hold no real token since what was there is erased, have gists of zeros."""
        if fill is not None and not fill.all():
            made = np.zeros((len(ids), *self.spec.shape), np.float16)
            made[fill > 0] = self.encode_blocks(ids[fill > 0], fill[fill > 0])
            return made
        mask = np.ones(ids.shape, np.bool_) if fill is None else fill[:, None] > _SLOTS
        # The filling's ids mean nothing and need not even be in the vocabulary.
        tokens = np.where(mask, ids, 0).astype(np.int64)
        parts = []
        with torch.no_grad():
            for at in range(0, len(ids), PIECE_BLOCKS):
                piece = slice(at, at + PIECE_BLOCKS)
                found = self._encoder.encode_blocks(self._base, torch.from_numpy(tokens[piece]), torch.from_numpy(mask[piece]))
                parts.append(found.numpy())
        return np.concatenate(parts) if parts else self._empty()

    def rebuild(
        self, tokens: Snapshot, stored: StoredGists | None = None, *, piece: int = 1024
    ) -> Iterator[tuple[int, NewGists]]:
        """Gists for the blocks of `tokens` behind what is `stored` (default: all), in pieces of at most `piece` blocks:
        (number of blocks, what `LayerWriter.append` takes). Holds one path of unfinished families, not the layer."""
        timeline = tokens.timeline()
        frontier = Frontier(stored or NoGists())
        while frontier.blocks < tokens.blocks:
            start = frontier.blocks
            stop = min((start // piece + 1) * piece, tokens.blocks)
            gists = self.extend(frontier, tokens.tokens(start, stop), tokens.fill(start, stop), timeline=timeline)
            frontier.add(stop - start, gists)
            yield stop - start, gists

    def _parents(self, stored: StoredGists, gists: NewGists, lod: int, start: int, stop: int, timeline: Timeline | None) -> F16:
        """Gists [stop - start, g, d] of nodes of `lod` from their children, of which the first may be stored already."""
        low, high = start * BLOCK, stop * BLOCK
        new_from, new = gists[lod - 1]
        old = [stored.gists(lod - 1, low, new_from)] if low < new_from else []
        children = np.concatenate([*old, new[max(low - new_from, 0) : high - new_from]])
        return self._encode_families(children, np.arange(low, high, dtype=np.int64), lod, timeline)

    def _encode_families(self, children: F16, index: I64, lod: int, timeline: Timeline | None) -> F16:
        """Gists [m, g, d] of level `lod` from whole families of `children` [32·m, g, d], the nodes at `index` [32·m] of the
        level below; zeros for a family of the dead."""
        vectors, width = self.spec.shape
        live = np.ones(len(index), np.bool_)
        if timeline is not None and timeline.dead:
            live = ~timeline.dead_mask(np.full(len(index), lod - 1, np.int8), index)
        families = live.reshape(-1, BLOCK)
        some = families.any(axis=1)
        mask = np.repeat(families[some], vectors, axis=1)
        slots = children.reshape(-1, BLOCK * vectors, width)[some].astype(np.float32)
        made = np.zeros((len(families), vectors, width), np.float16)
        if some.any():
            made[some] = self._encoder.encode_canonical(torch.from_numpy(slots), torch.from_numpy(mask), lod).numpy()
        return made

    def _empty(self) -> F16:
        return np.zeros((0, *self.spec.shape), np.float16)


class Frontier:
    """Stored gists that grow in memory: of each level, only the children of the family that is not complete."""

    def __init__(self, stored: StoredGists) -> None:
        self.blocks = stored.blocks
        self._levels: dict[int, tuple[int, F16]] = {}
        lod = 1
        while nodes := self.blocks >> _shift(lod):
            start = nodes // BLOCK * BLOCK
            self._levels[lod] = (start, stored.gists(lod, start, nodes))
            lod += 1

    def gists(self, lod: int, start: int, stop: int) -> F16:
        """As `StoredGists.gists`, for nodes of the unfinished family."""
        first, rows = self._levels[lod]
        return rows[start - first : stop - first]

    def add(self, blocks: int, gists: NewGists) -> None:
        """Takes in the gists of `blocks` more blocks."""
        self.blocks += blocks
        for lod, (start, new) in gists.items():
            first, rows = self._levels.get(lod, (start, new[:0]))
            keep = (start + len(new)) // BLOCK * BLOCK
            self._levels[lod] = (max(keep, first), np.concatenate([rows, new])[max(keep - first, 0) :])


def _shift(lod: int) -> int:
    """log2 of the blocks in a node of a level."""
    return 5 * (lod - 1)
