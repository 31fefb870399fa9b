"""Repack: a branch is written anew from a segment on, without the dead blocks behind it, in one new commit.

The segments before it are shared with the commits before. Documents keep their ordinals and their order; those that died
behind it have no blocks any more. Level 1 gists are copied, those above come from the caller. What is pruned is read in its
archive and goes there again. Old commits read as before, and a crash at any moment leaves the branch as it was or as it is
to be.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from megacontext.core.node import BoolArray
from megacontext.core.ranges import BlockRanges
from megacontext.errors import InvalidInput
from megacontext.storage import merkle
from megacontext.storage.commit import Commit, load_layer
from megacontext.storage.dead import load_dead
from megacontext.storage.documents import PAGE_RECORDS, Documents, DocumentTree
from megacontext.storage.gists import GistRows, GistTree, LayerSpec, NewGists
from megacontext.storage.objects import LocalObjectStore, ObjectReader
from megacontext.storage.packing import Packing
from megacontext.storage.place import Place
from megacontext.storage.seal import Sealer
from megacontext.storage.segment import UNKNOWN, Strand, TokenTree
from megacontext.storage.snapshot import Snapshot
from megacontext.storage.state import Base
from megacontext.storage.tail import Tail
from megacontext.storage.tensors import F16, I64, U8, U32
from megacontext.storage.transaction import Transaction

# Ids [n, 32], fill [n] and level 1 gists [n, g, d] of the blocks that come next -> the gists of all nodes they complete.
MakeGists = Callable[[U32, U8, F16], NewGists]
# So many segments are held in memory at once.
PIECE_SEGMENTS = 8


class Repacker(Transaction):
    """A branch that is about to be repacked; get it from `Repository.repacker`, use it as a context manager.

    What its journal holds is committed first. `before` is what it holds then.
    """

    def __init__(self, place: Place, branch: str) -> None:
        super().__init__(place, branch)
        self._gone = BlockRanges.of(self.pruned())
        self.before: Snapshot = self.whole_snapshot() if self._gone.total else self.snapshot()

    def rewrite(
        self,
        first: int,
        *,
        layer: LayerSpec | None = None,
        make: MakeGists | None = None,
        message: str = "",
        author: str = "",
        time: float | None = None,
    ) -> str:
        """Leaves out what is dead from block `first`, a segment's boundary, on; returns the new commit's name.

        `make` builds the gists of `layer`, which has to cover all there is; all other layers are cut to what is before
        `first`, and `add_layer` brings them up to date. Raises InvalidInput, StorageFull with nothing changed.
        """
        size, before = self._place.segment_blocks, self.before
        if first % size or not 0 <= first < max(before.blocks, 1):
            raise InvalidInput(f"a repack begins at the boundary of a segment of {size} blocks, not at block {first}")
        if layer and (before.layers.get(layer.fingerprint) != before.blocks or layer.fingerprint in before.stale_layers):
            raise InvalidInput(f"gist layer {layer.fingerprint} is not up to date; bring it up with add_layer, or cut it")
        packing = Packing(first, before.blocks, before.timeline().dead)
        try:
            copy = _Copy(self._store, size, self._state.base, packing, layer)
            live = before.timeline().present(first, before.blocks)
            for at in range(0, len(live), PIECE_SEGMENTS * size):
                blocks = live[at : at + PIECE_SEGMENTS * size]
                copy.take(before, blocks, self._gone.touch(blocks, blocks + 1), make)
            records = Documents(self._place.reader, self._state.base.documents.records, self._state.visible_documents())
            commit = replace(
                copy.commit(before, records),
                parents=(self.commit_name,),
                author=author,
                time=clock.time() if time is None else time,
                message=message,
            )
            name = self._store.put(commit.to_bytes())
            self._store.sync()
        except BaseException:
            self._store.discard()
            raise
        self.move(name)
        return name


class _Copy:
    """A branch as it grows anew behind the first block of a `packing`. Objects are only staged."""

    def __init__(
        self, store: LocalObjectStore, segment_blocks: int, base: Base, packing: Packing, layer: LayerSpec | None
    ) -> None:
        self._store, self._size, self._base, self._packing = store, segment_blocks, base, packing
        self._reader, self._sealer = ObjectReader(store), Sealer(store, segment_blocks)
        self._first = packing.first // segment_blocks
        self._tokens = TokenTree(strand=self._cut(base.tokens.strand), blocks=packing.first)
        self._spans = self._cut(base.documents.spans)
        self._layers = {name: self._cut_layer(load_layer(self._reader, root)) for name, root in base.commit.layers.items()}
        self._layer = layer.fingerprint if layer else ""
        self._tail = Tail(packing.first, GistRows(layer, packing.first) if layer else None)

    def take(self, before: Snapshot, blocks: I64, pruned: BoolArray, make: MakeGists | None) -> None:
        """Adds the blocks at these indices, which stay `pruned` where they were: whole segments, or the last blocks there
        are."""
        self._tail.prune((self._tail.blocks + at, self._tail.blocks + at + 1) for at in np.flatnonzero(pruned).tolist())
        ids, fill = before.tokens_at(blocks), before.fill_at(blocks)
        chars, lines = (np.where(each < 0, UNKNOWN, each).astype(np.uint32) for each in before.spans_at(blocks))
        self._tail.extend(ids, before.documents_at(blocks), fill, chars, lines)
        if self._tail.gists and make:
            gists = make(ids, fill, before.gists_at(1, blocks, self._layer))
            self._tail.gists.append(len(blocks), self._tail.gists.check(len(blocks), gists))
        if self._tail.ids.count % self._size == 0:
            self._seal()

    def commit(self, before: Snapshot, records: Documents) -> Commit:
        """The commit of what was taken, with the unfinished block behind it."""
        self._tail.open_ids = before.open_ids
        self._seal(len(records) - 1)
        base, packing = self._base, self._packing
        page = self._first_page(before)
        kept = DocumentTree(
            records=Strand(merkle.prefix(self._reader, self._store, base.documents.records.segments, page)),
            spans=self._spans,
        )
        newest = tuple(packing.record(records[at], before) for at in range(page * PAGE_RECORDS, len(records)))
        documents = self._sealer.documents(kept, newest, self._tail.view(self._tail.blocks, 0))
        return replace(
            base.commit,
            tokens=self._store.put(self._tokens.to_bytes()),
            documents=self._store.put(documents.to_bytes()),
            layers={name: self._store.put(tree.to_bytes()) for name, tree in self._layers.items()},
            blocks=self._tokens.blocks,
            dead=self._sealer.dead(packing.kept_dead),
            labels=self._sealer.labels(packing.labels(base.labels), base.labels, base.commit.labels),
        )

    def _seal(self, open_document: int = 0) -> None:
        """Turns the tail into segments, and pages for what fills none."""
        view, blocks = self._tail.view(self._tail.blocks, open_document), self._tail.blocks
        self._tokens = self._sealer.tokens(self._tokens, view)
        self._spans = self._sealer.documents(DocumentTree(spans=self._spans), (), view).spans
        sealed = self._tokens.strand.segments
        if self._tail.gists and blocks:
            layer, dead = self._layers[self._layer], self._packing.kept_dead
            self._layers[self._layer] = self._sealer.gists(layer, self._tail.gists, blocks, sealed, dead)
        self._tail = self._tail.after(sealed.count * self._size)

    def _first_page(self, before: Snapshot) -> int:
        """The page of the first record that may change. Records before that of the first block end before it."""
        ordinal = int(before.documents_at(np.array([self._packing.first]))[0])
        return min(ordinal // PAGE_RECORDS, self._base.documents.records.segments.count)

    def _cut(self, strand: Strand) -> Strand:
        return Strand(merkle.prefix(self._reader, self._store, strand.segments, self._first))

    def _cut_layer(self, tree: GistTree) -> GistTree:
        """A layer as far as it lies before the first block; one that ends there already stays."""
        first = self._packing.first
        known = load_dead(self._reader, tree.dead)
        dead = self._sealer.dead(Packing(first, first, known).kept_dead)
        if tree.blocks <= first:
            return replace(tree, dead=dead)
        return replace(tree, strand=self._cut(tree.strand), blocks=first, dead=dead)
