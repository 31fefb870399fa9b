"""History without some documents: every commit that holds them, and every one after those, written anew.

Positions stay. The blocks of an erased document become blank (ids and fill 0, where they start in its text unknown) and are
dead in every commit; its record becomes a tombstone. Gists above them are made again from live children, those of the blocks
themselves are zero. What a commit looks like is what it would look like had blank blocks been written in their place.

Objects are only staged here, and nothing old is touched. What is pruned is read in its archive, and what stays pruned goes
there again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from megacontext.core.ranges import joined
from megacontext.core.timeline import Timeline
from megacontext.storage import merkle
from megacontext.storage.commit import Commit, load_commit, load_layer
from megacontext.storage.dead import DeadRanges, load_dead
from megacontext.storage.documents import PAGE_RECORDS, DocumentRecord, DocumentTree, load_page, page_object
from megacontext.storage.erasure.doomed import Doomed, Records
from megacontext.storage.gists import GistTree, Layer, LayerSpec, load_rows
from megacontext.storage.labels import load_labels
from megacontext.storage.merkle import MerkleList
from megacontext.storage.objects import ObjectReader
from megacontext.storage.patches import Overlay, Patches
from megacontext.storage.seal import Sealer
from megacontext.storage.segment import SPANS, TOKENS, UNKNOWN, Strand, TokenTree, span_object, token_object
from megacontext.storage.state import Base
from megacontext.storage.tail import TailView, load_tail
from megacontext.storage.tensors import F16, I64, Array
from megacontext.storage.whole import WholeReader, WholeStore

Spans = tuple[tuple[int, int], ...]
# `GistBuilder.remake` of a GistNet: gists of a layer's nodes above level 1 without what is dead in the timeline.
Remake = Callable[[Layer, Timeline, Sequence[tuple[int, int]]], Patches]


class Witness(Protocol):
    """Who takes note of what goes, before it does."""

    def commit(self, base: Base, gone: Sequence[DocumentRecord], spans: Spans) -> None:
        """A commit that holds erased documents, with their records and their blocks."""

    def layer(self, layer: Layer, tree: GistTree, spans: Spans, changed: Patches) -> None:
        """A gist layer of it: `changed` maps levels from 2 on to nodes whose gists go, with the gists that come (all zero where
        the layer goes as a whole)."""


@dataclass
class Rewritten:
    """The commits that were written anew, old name → new name, and the fingerprints of layers that could not be: they are
    not in the new commits. `documents` counts distinct records that went, `blocks` blank blocks, over all distinct objects."""

    renamed: dict[str, str] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    redacted: int = 0


class Rewriter:
    """Writes commits anew into `store`; `remake` gives, for a layer's GistNet, what makes gists again (None: not at hand), and
    `redact` takes erased names out of a message."""

    def __init__(
        self,
        store: WholeStore,
        segment_blocks: int,
        doomed: Doomed,
        remake: Callable[[LayerSpec], Remake | None],
        redact: Callable[[str], str],
        witness: Witness,
    ) -> None:
        self._store, self._segment, self._doomed = store, segment_blocks, doomed
        self._remake, self._redact, self._witness = remake, redact, witness
        self._reader = WholeReader(store)
        self._sealer = Sealer(store, segment_blocks)
        self._records = Records(self._reader, doomed)
        self._pieces: dict[tuple[str, Spans], str] = {}

    def history(self, names: Iterable[str]) -> Rewritten:
        """Writes anew what these commits and all before them need. Raises CorruptObject, MissingObject."""
        done = Rewritten()
        for name in in_order(self._reader, names):
            new = self._commit(name, done)
            if new != name:
                done.renamed[name] = new
        return done

    def _commit(self, name: str, done: Rewritten) -> str:
        old = load_commit(self._reader, name)
        parents = tuple(done.renamed.get(parent, parent) for parent in old.parents)
        message = self._redact(old.message)
        done.redacted += message != old.message
        gone = self._records.doomed(old)
        if not gone and (parents, message) == (old.parents, old.message):
            return name
        content = self._content(Base.load(self._reader, name), gone, done) if gone else old
        return self._store.put(replace(content, parents=parents, message=message).to_bytes())

    def _content(self, base: Base, gone: list[DocumentRecord], done: Rewritten) -> Commit:
        """The commit without the documents `gone`."""
        old = base.commit
        spans: Spans = joined(record.span for record in gone if record.blocks)
        self._witness.commit(base, gone, spans)
        tail = load_tail(self._reader, base.tokens, base.documents.spans, self._segment, None)
        view = _blanked(tail.view(old.blocks, old.document_count - 1), spans)
        if gone[-1].open:
            view = view._replace(open_ids=view.open_ids[:0])
        segments = self._rewritten(base.tokens.strand.segments, spans, TOKENS)
        tokens = self._sealer.tokens(TokenTree(strand=Strand(segments)), view)
        dead = with_ranges(load_dead(self._reader, old.dead), spans)
        layers = {name: self._layer(root, old, spans, segments, done) for name, root in old.layers.items()}
        return replace(
            old,
            tokens=self._store.put(tokens.to_bytes()),
            documents=self._store.put(self._documents(base, gone, spans, view).to_bytes()),
            layers={name: root for name, root in layers.items() if root},
            open_tokens=tokens.open_tokens,
            dead=self._sealer.dead(dead),
            labels=self._labels(old.labels, {record.ordinal for record in gone}, spans),
        )

    def _rewritten(self, items: MerkleList, spans: Spans, kind: str) -> MerkleList:
        """A list of segments with blank blocks."""
        names = {}
        for number, inside in by_segment(spans, self._segment, items.count).items():
            name = merkle.get(self._reader, items, number)
            if (name, inside) not in self._pieces:
                self._pieces[name, inside] = self._blank_piece(name, inside, kind)
            names[number] = self._pieces[name, inside]
        return merkle.rewrite(self._reader, self._store, items, names) if names else items

    def _blank_piece(self, name: str, inside: Spans, kind: str) -> str:
        """A segment with blank blocks; what else of it is pruned stays so."""
        if kind == SPANS:
            return self._store.put(_blank_spans(self._reader.tensors(name, kind).arrays, inside))
        arrays, pruned = self._reader.blocks(name)
        left = DeadRanges(pruned).without(DeadRanges(inside))
        blank = _blank_tokens(arrays, inside)
        return self._store.put_pruned(blank, left) if left else self._store.put(blank)

    def _documents(self, base: Base, gone: list[DocumentRecord], spans: Spans, view: TailView) -> DocumentTree:
        strand = base.documents.records
        blank = {record.ordinal: self._doomed.blank(record) for record in gone}

        def page(name: str, number: int) -> list[DocumentRecord]:
            records = enumerate(load_page(self._reader, name))
            return [blank.get(number * PAGE_RECORDS + slot, record) for slot, record in records]

        sealed = strand.segments
        touched = {ordinal // PAGE_RECORDS for ordinal in blank if ordinal < sealed.count * PAGE_RECORDS}
        names = {
            number: self._store.put(page_object(page(merkle.get(self._reader, sealed, number), number))) for number in touched
        }
        records = merkle.rewrite(self._reader, self._store, sealed, names) if names else sealed
        newest = [record for at, name in enumerate(strand.pages) for record in page(name, sealed.count + at)]
        texts = self._rewritten(base.documents.spans.segments, spans, SPANS)
        return self._sealer.documents(DocumentTree(records=Strand(records), spans=Strand(texts)), tuple(newest), view)

    def _layer(self, root: str, commit: Commit, spans: Spans, tokens: MerkleList, done: Rewritten) -> str:
        """A layer without what was made of erased blocks; '' where it takes a GistNet that is not at hand."""
        tree = load_layer(self._reader, root)
        known = load_dead(self._reader, tree.dead)
        dead = with_ranges(known.copy(), spans)
        rows = load_rows(self._reader, tree, self._segment)
        layer = Layer(self._reader, self._segment, tree, rows, tree.blocks)
        covered: Spans = tuple((start, min(stop, tree.blocks)) for start, stop in spans if start < tree.blocks)
        died = [(start, min(stop, tree.blocks)) for start, stop in dead.without(known) if start < tree.blocks]
        remake = self._remake(tree.spec) if died else _nothing
        if remake is None:
            done.dropped.add(tree.spec.fingerprint)
            self._witness.layer(layer, tree, covered, _without(layer, died))
            return ""
        patches = remake(layer, Timeline(blocks=commit.blocks, dead=tuple(dead)), died)
        self._witness.layer(layer, tree, covered, patches)
        overlay = Overlay({**patches, **_zeros(tree.spec, covered)})
        new = self._sealer.gists(tree, rows, tree.blocks, tokens, dead, overlay, covered)
        return self._store.put(new.to_bytes())

    def _labels(self, name: str, gone: set[int], spans: Spans) -> str:
        """Labels, and those that they were made from, without what they say of erased documents."""
        chain = []
        while name and self._store.has(name):  # that far back, history may have been cut off
            chain.append(load_labels(self._reader, name))
            name = chain[-1].before
        for labels in reversed(chain):
            kept = {ordinal: marks for ordinal, marks in labels.documents.items() if ordinal not in gone}
            less = replace(labels, documents=kept)
            for start, stop in spans:
                less = less.remove(labels.ranges, start, stop)
            name = self._store.put(replace(less, before=name).to_bytes())
        return name


def in_order(reader: ObjectReader, names: Iterable[str]) -> list[str]:
    """These commits and all before them, each after its parents. Raises MissingObject, CorruptObject."""
    order: list[str] = []
    seen: set[str] = set()
    for first in sorted(set(names)):
        todo = [(first, False)]
        while todo:
            name, ready = todo.pop()
            if ready:
                order.append(name)
            elif name not in seen:
                seen.add(name)
                todo.append((name, True))
                todo += [(parent, False) for parent in load_commit(reader, name).parents]
    return order


def by_segment(spans: Spans, size: int, count: int) -> dict[int, Spans]:
    """Ranges of blocks by the segments of `size` blocks that they lie in, of the first `count`, from each one's start."""
    inside: dict[int, list[tuple[int, int]]] = {}
    for start, stop in spans:
        for number in range(start // size, min(-(-stop // size), count)):
            first = number * size
            inside.setdefault(number, []).append((max(start - first, 0), min(stop - first, size)))
    return {number: tuple(ranges) for number, ranges in sorted(inside.items())}


def inside_mask(spans: Spans, start: int, count: int) -> Array:
    """Which of `count` blocks from `start` on lie in the ranges, bool [count]."""
    mask = np.zeros(count, np.bool_)
    for low, high in spans:
        mask[max(low - start, 0) : max(high - start, 0)] = True
    return mask


def with_ranges(dead: DeadRanges, spans: Spans) -> DeadRanges:
    """The dead ranges, with more of them."""
    for start, stop in spans:
        dead.add(start, stop)
    return dead


def blocks_of(spans: Iterable[tuple[int, int]]) -> I64:
    """The blocks in ranges, int64 [n]."""
    ranges = [np.arange(start, stop, dtype=np.int64) for start, stop in spans]
    return np.concatenate(ranges) if ranges else np.zeros(0, np.int64)


def _blanked(view: TailView, spans: Spans) -> TailView:
    mask = inside_mask(spans, view.start, len(view.ids))
    return view._replace(
        ids=np.where(mask[:, None], np.uint32(0), view.ids),
        fill=np.where(mask, np.uint8(0), view.fill),
        chars=np.where(mask, np.uint32(UNKNOWN), view.chars),
        lines=np.where(mask, np.uint32(UNKNOWN), view.lines),
        pruned=tuple(DeadRanges(view.pruned).without(DeadRanges(spans))),
    )


def _blank_tokens(arrays: dict[str, Array], inside: Spans) -> bytes:
    mask = inside_mask(inside, 0, len(arrays["ids"]))
    ids = np.where(mask[:, None], np.uint32(0), arrays["ids"])
    return token_object(ids, arrays["doc"], np.where(mask, np.uint8(0), arrays["fill"]))


def _blank_spans(arrays: dict[str, Array], inside: Spans) -> bytes:
    mask = inside_mask(inside, 0, len(arrays["chars"]))
    chars, lines = (np.where(mask, np.uint32(UNKNOWN), arrays[name]) for name in ("chars", "lines"))
    return span_object(chars, lines)


def _zeros(spec: LayerSpec, spans: Spans) -> dict[int, tuple[I64, F16]]:
    blocks = blocks_of(spans)
    return {1: (blocks, np.zeros((len(blocks), *spec.shape), np.float16))} if len(blocks) else {}


def _nothing(layer: Layer, timeline: Timeline, spans: Sequence[tuple[int, int]]) -> Patches:
    """For a layer in which all that goes was dead before: gists above it do not hold it."""
    return {}


def _without(layer: Layer, spans: Iterable[tuple[int, int]]) -> Patches:
    """All nodes above level 1 that hold blocks of the ranges, as if they became zero."""
    changed: dict[int, tuple[I64, F16]] = {}
    index, lod = blocks_of(spans), 2
    while layer.count(lod):
        index = np.unique(index // merkle.ARITY)
        index = index[index < layer.count(lod)]
        if len(index):
            changed[lod] = index, np.zeros((len(index), *layer.spec.shape), np.float16)
        lod += 1
    return changed
