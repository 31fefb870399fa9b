"""Snapshots: an immutable, consistent view of a memory at one moment, whatever a writer does meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.core.ranges import BlockRanges, joined
from megacontext.core.timeline import Timeline
from megacontext.errors import UnknownReference
from megacontext.storage.access import shown_commit
from megacontext.storage.column import Column
from megacontext.storage.commit import Commit, load_layer
from megacontext.storage.documents import DocumentRecord
from megacontext.storage.gists import NOTHING, GistTree, Layer, load_rows
from megacontext.storage.guard import Guard, GuardedColumn
from megacontext.storage.hashing import digest
from megacontext.storage.labels import Labels
from megacontext.storage.merkle import get, iterate
from megacontext.storage.objects import ObjectReader
from megacontext.storage.raw import RawColumn, fetcher, pruned_blocks
from megacontext.storage.segment import SPANS, UNKNOWN
from megacontext.storage.shown import ShownDocuments
from megacontext.storage.state import BranchState
from megacontext.storage.tensors import F16, I64, U8, U32, Array


class Snapshot:
    """What a memory holds at one moment: tokens, gists, documents. Reads cost what they return, not what
    the memory holds. Damaged objects raise CorruptObject or MissingObject when they are read.

    `blocks` complete blocks; `open_ids` uint32 [k] the tokens of the unfinished block behind them (only an
    open conversation has one); `commit_name` and `commit` what it builds on; `documents` by ordinal; `labels`.

    Behind a `guard`, blocks and gists that it denies raise AccessDenied, and denied documents and the unfinished block of
    one are not there.
    """

    def __init__(self, reader: ObjectReader, state: BranchState, segment_blocks: int, guard: Guard | None = None) -> None:
        tail = state.visible_tail()
        self.commit_name: str = state.base.name
        self.commit: Commit = shown_commit(state.base.commit, whole=guard is None)
        self.blocks: int = tail.start + len(tail.ids)
        self.labels: Labels = state.labels()
        newest = state.visible_documents()
        self.documents = ShownDocuments(reader, state.base.documents.records, newest, self.labels, guard)
        hidden = guard is not None and len(tail.open_ids) > 0 and self.documents.shown(newest[-1]) is None
        self.open_ids: U32 = tail.open_ids[:0] if hidden else tail.open_ids
        self._guard = guard
        self._dead = state.dead
        self._reader = reader
        self._segment_blocks = segment_blocks
        self._layers = _Layers(reader, state, segment_blocks, self.blocks, guard)
        segments, spans = state.base.tokens.strand.segments, state.base.documents.spans.segments
        self._segments = segments

        pruned = () if reader.whole else pruned_blocks(reader, segments, segment_blocks, tail.pruned)
        self._pruned = joined((a, min(b, self.blocks)) for a, b in pruned if a < self.blocks)
        known = BlockRanges.of(self._pruned)

        def guarded(whole: Column) -> Column | GuardedColumn:
            return whole if guard is None else guard.column(whole, 0)

        def of_tokens(name: str, rows: Array) -> Column | GuardedColumn:
            fetch = fetcher(reader, segments, name, known, segment_blocks)
            if name == "ids" and self._pruned:
                return guarded(RawColumn(fetch, segment_blocks, tail.start, rows, known))
            return guarded(Column("blocks", fetch, segment_blocks, tail.start, rows))

        def of_spans(name: str, rows: Array) -> Column | GuardedColumn:
            def fetch(number: int) -> Array:
                return reader.tensors(get(reader, spans, number), SPANS).arrays[name]

            return guarded(Column("blocks", fetch, segment_blocks, tail.start, rows))

        self._ids, self._fill, self._doc = (
            of_tokens(name, rows) for name, rows in (("ids", tail.ids), ("fill", tail.fill), ("doc", tail.doc))
        )
        self._chars, self._lines = of_spans("chars", tail.chars), of_spans("lines", tail.lines)

    @property
    def cursor(self) -> int:
        """Length of the timeline in tokens, filling and the unfinished block included."""
        return self.blocks * BLOCK + len(self.open_ids)

    @property
    def sealed_blocks(self) -> int:
        """Blocks in sealed segments; those from here on lie in the tail."""
        return self._segments.count * self._segment_blocks

    def segments(self) -> list[str]:
        """Names of the sealed token segments in order: keys for what is derived from them, shared by branches, and by
        readers that see the same of them."""
        names = list(iterate(self._reader, self._segments))
        size = self._segment_blocks
        for start, stop in self._pruned:
            for number in range(start // size, min(-(-stop // size), len(names))):
                inside = max(start - number * size, 0), min(stop - number * size, size)
                names[number] = digest(f"{names[number]} pruned {inside}".encode())
        return names if self._guard is None else self._guard.names(names, self._segment_blocks)

    @property
    def key(self) -> str:
        """A name for the blocks of the timeline as this reader sees them: a key for what is derived from them all."""
        root = self.commit.tokens
        if self._pruned:
            root = digest(f"{root} pruned {self._pruned}".encode())
        return root if self._guard is None else digest(f"{root} {self._guard.key}".encode())

    def timeline(self) -> Timeline:
        """The timeline as the core knows it, with its dead blocks and those that are denied to this reader."""
        return self._timeline

    @cached_property
    def _timeline(self) -> Timeline:
        timeline = Timeline(blocks=self.blocks, open_tokens=len(self.open_ids), dead=tuple(self._dead))
        timeline = timeline.prune(self._pruned) if self._pruned else timeline
        return timeline if self._guard is None else self._guard.timeline(timeline)

    def tokens(self, start: int, stop: int) -> U32:
        """Token ids of blocks `start:stop`, uint32 [n, 32]; raises UnknownReference outside `blocks`."""
        return self._ids.range(start, stop)

    def tokens_at(self, blocks: I64) -> U32:
        """Token ids of the blocks at int64 [k] indices, uint32 [k, 32]."""
        return self._ids.at(blocks)

    def shown(self, start: int, stop: int) -> tuple[U32, U8]:
        """Token ids uint32 [n, 32] and fill uint8 [n] of blocks `start:stop`, with denied and pruned blocks as if they were
        empty: for what is derived from whole segments, under the names of `segments`."""
        if self._guard is None and not self._pruned:
            return self.tokens(start, stop), self.fill(start, stop)
        return self.shown_at(np.arange(start, stop, dtype=np.int64))

    def shown_at(self, blocks: I64) -> tuple[U32, U8]:
        """The same of the blocks at int64 [k] indices: what is denied or pruned has a fill of 0."""
        ids, fill = np.zeros((len(blocks), BLOCK), np.uint32), np.zeros(len(blocks), np.uint8)
        there = self._timeline.finest(blocks) == 0
        if self._guard is not None:
            there &= ~self._guard.denied_at(blocks)
        ids[there], fill[there] = self.tokens_at(blocks[there]), self.fill_at(blocks[there])
        return ids, fill

    def allowed(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Blocks `start:stop` without denied ones, as runs `(start, stop)`; dead ones are among them."""
        denied = [] if self._guard is None else [(max(a, start), min(b, stop)) for a, b in self._guard.spans]
        edges = [start, *(edge for a, b in denied if a < b for edge in (a, b)), stop]
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b or start == stop]

    def original(self, document: DocumentRecord) -> bytes | None:
        """The bytes of a document's source where decoding its tokens does not give them back, else None."""
        name = self.documents[document.ordinal].original
        return self._reader.store.get(name) if name else None

    def fill(self, start: int, stop: int) -> U8:
        """Real tokens of blocks `start:stop`, uint8 [n]: 32 but for the last block of a document."""
        return self._fill.range(start, stop)

    def fill_at(self, blocks: I64) -> U8:
        """Real tokens of the blocks at int64 [k] indices, uint8 [k]."""
        return self._fill.at(blocks)

    def documents_at(self, blocks: I64) -> U32:
        """Ordinals of the documents of the blocks at int64 [k] indices, uint32 [k]."""
        return self._doc.at(blocks)

    def document_of(self, block: int) -> DocumentRecord:
        """The document of a block; the unfinished block counts."""
        if block == self.blocks and len(self.open_ids):
            return self.documents[len(self.documents) - 1]
        return self.documents[int(self._doc.range(block, block + 1)[0])]

    def spans_at(self, blocks: I64) -> tuple[I64, I64]:
        """Where blocks start in their documents' text: characters (from 0) and lines (from 1), int64 [k]
        each; -1 where it is not known."""
        return _known(self._chars.at(blocks)), _known(self._lines.at(blocks))

    @property
    def layers(self) -> Mapping[str, int]:
        """The gist layers: fingerprint → how many blocks it covers."""
        return self._layers.coverage

    @property
    def stale_layers(self) -> frozenset[str]:
        """Fingerprints of layers in whose gists blocks still are that died since; `add_layer` brings them up to date."""
        return self._layers.stale

    def layer(self, fingerprint: str | None = None) -> Layer:
        """A gist layer by its GistNet's fingerprint; without one, the only layer, or the one that the branch is
        being written with. Raises UnknownReference if there is none or the choice is not clear."""
        return self._layers.open(fingerprint)

    def gists(self, lod: int, start: int, stop: int, layer: str | None = None) -> F16:
        """Gists of nodes `start:stop` of a level, float16 [n, g, d], from `layer(layer)`."""
        return self.layer(layer).gists(lod, start, stop)

    def gists_at(self, lod: int, index: I64, layer: str | None = None) -> F16:
        """Gists of the nodes at int64 [k] indices of a level, float16 [k, g, d], from `layer(layer)`."""
        return self.layer(layer).gists_at(lod, index)


class _Layers:
    """The gist layers of a snapshot, opened when asked for."""

    def __init__(self, reader: ObjectReader, state: BranchState, segment_blocks: int, blocks: int, guard: Guard | None) -> None:
        self._guard = guard
        self._reader = reader
        self._segment_blocks = segment_blocks
        self._trees = {fingerprint: load_layer(reader, root) for fingerprint, root in state.base.commit.layers.items()}
        self._open: dict[str, Layer] = {}
        self.coverage = {fingerprint: tree.blocks for fingerprint, tree in self._trees.items()}
        behind = {name for name, tree in self._trees.items() if tree.dead != state.base.commit.dead or state.died}
        self.stale = frozenset(name for name in behind if self._trees[name].blocks)
        self._written = ""
        if state.spec and state.tail.gists and blocks:
            name = self._written = state.spec.fingerprint
            tree = self._trees.get(name) or GistTree(spec=state.spec)
            # Opened at once: the writer's rows move on.
            self._open[name] = Layer(reader, segment_blocks, tree, state.tail.gists, blocks, state.overlay, guard)
            self.coverage[name] = blocks
            self.stale -= {name}

    def open(self, fingerprint: str | None) -> Layer:
        name = fingerprint or self._written
        if not name and len(self.coverage) == 1:
            name = next(iter(self.coverage))
        if name not in self.coverage:
            known = ", ".join(sorted(self.coverage)) or "none: it was written without a GistNet"
            raise UnknownReference(f"no gist layer {name or 'is the obvious one'}; this memory has {known}")
        if name not in self._open:
            tree = self._trees[name]
            rows = load_rows(self._reader, tree, self._segment_blocks)
            self._open[name] = Layer(self._reader, self._segment_blocks, tree, rows, tree.blocks, NOTHING, self._guard)
        return self._open[name]


def _known(values: U32) -> I64:
    """UNKNOWN becomes -1."""
    known = values.astype(np.int64)
    known[values == UNKNOWN] = -1
    return known
