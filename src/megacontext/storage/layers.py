"""Laying a gist layer over tokens that are there already: for a first GistNet, or a better one.

Tokens are never touched. The work may stop anywhere: a commit with a layer over the first part of the
blocks is a valid one, and the next writer goes on behind it.
"""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from dataclasses import replace

from megacontext.core.node import BLOCK
from megacontext.errors import InvalidInput
from megacontext.storage.dead import load_dead
from megacontext.storage.gists import NOTHING, GistTree, Layer, LayerSpec, NewGists, load_rows
from megacontext.storage.hold import BranchHold
from megacontext.storage.patches import Patches, checked
from megacontext.storage.place import Place
from megacontext.storage.seal import Sealer
from megacontext.storage.snapshot import Snapshot
from megacontext.storage.state import layer_tree


class LayerWriter(BranchHold):
    """Extends a gist layer; get it from `Repository.add_layer`, use it as a context manager.

    What the branch's journal holds is committed first, so that the layer can cover all of it.
    `tokens` is the snapshot whose blocks are to be gisted, `blocks` how many the layer covers so far, `died` ranges of these
    that died since: their nodes need a `patch` before anything else.
    """

    def __init__(self, place: Place, branch: str, spec: LayerSpec) -> None:
        super().__init__(place, branch)
        try:
            if self._journal.records:
                super().commit("Settled before adding a gist layer")
            self.spec = spec
            self._tree: GistTree = layer_tree(place.reader, self._state.base, spec)
            self._rows = load_rows(place.reader, self._tree, place.segment_blocks)
            self._overlay = NOTHING
            self._dead = self._state.dead
            known = load_dead(place.reader, self._tree.dead)
            self.died: list[tuple[int, int]] = self._dead.without(known) if self._rows.blocks else []
            self.tokens: Snapshot = self.whole_snapshot() if self.pruned() else self.snapshot()
        except BaseException:
            self.close()
            raise

    @property
    def blocks(self) -> int:
        """Blocks that the layer covers, uncommitted ones included: the index of the next one it needs."""
        return self._rows.blocks

    @property
    def segment_tokens(self) -> int:
        """Tokens in a segment; appending whole segments writes each object once."""
        return self._place.segment_blocks * BLOCK

    def stored(self) -> Layer:
        """The layer so far."""
        return Layer(self._place.reader, self._place.segment_blocks, self._tree, self._rows, self._rows.blocks, self._overlay)

    def patch(self, patches: Patches) -> None:
        """Takes the gists, made again, of the layer's nodes above level 1 that hold what `died`. Comes first: raises
        InvalidInput for patches that do not fit."""
        self._overlay = self._overlay.over(checked(patches, self.spec.shape, self._rows.blocks))
        self.died = []

    def append(self, blocks: int, gists: NewGists) -> None:
        """Adds the gists of the nodes that `blocks` more blocks complete; raises InvalidInput past the tokens, or before
        what died has been taken out of the layer."""
        if self.died:
            raise InvalidInput("blocks of this layer died since it was made; patch it first")
        if blocks < 0 or self.blocks + blocks > self.tokens.blocks:
            raise InvalidInput(f"there are {self.tokens.blocks} blocks, {self.blocks} of them have gists already")
        self._rows.append(blocks, self._rows.check(blocks, gists))

    def commit(self, message: str = "", author: str = "", time: float | None = None, *, parents: Sequence[str] = ()) -> str:
        """Makes the layer so far part of the branch, durably; returns the commit's name."""
        base = self._state.base
        sealer = Sealer(self._store, self._place.segment_blocks)
        try:
            if self.died:
                raise InvalidInput("blocks of this layer died since it was made; patch it first")
            sealed = base.tokens.strand.segments
            tree = sealer.gists(self._tree, self._rows, self.blocks, sealed, self._dead, self._overlay)
            layers = {**base.commit.layers, self.spec.fingerprint: self._store.put(tree.to_bytes())}
            name = self._publish(
                replace(
                    base.commit,
                    layers=layers,
                    parents=(base.name, *parents),
                    author=author,
                    time=clock.time() if time is None else time,
                    message=message,
                )
            )
        except BaseException:
            self._store.discard()
            raise
        self._tree = tree
        self._rows = self._rows.after(tree.strand.segments.count * self._place.segment_blocks, self._overlay)
        self._overlay = NOTHING
        return name
