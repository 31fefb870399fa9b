"""From a branch's state to the objects of a commit: full segments are sealed, the rest becomes pages.

Objects are only staged here. What a commit looks like depends on the content alone, never on how it came
in or where earlier commits were made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.storage import merkle
from megacontext.storage.documents import PAGE_RECORDS, DocumentRecord, DocumentTree, page_object
from megacontext.storage.gists import GistRows, GistTree, gist_object, inner_levels, nodes
from megacontext.storage.merkle import MerkleList, RowSource
from megacontext.storage.objects import ObjectReader, ObjectStore
from megacontext.storage.segment import PAGE_BLOCKS, Strand, TokenTree, span_object, token_object
from megacontext.storage.tail import TailView

# The object of blocks `start:stop` of the timeline.
Cut = Callable[[int, int], bytes]


class Sealer:
    """Stages the objects of one commit."""

    def __init__(self, store: ObjectStore, segment_blocks: int) -> None:
        # Sees what is staged; the readers that snapshots share see only what is durable.
        self._reader = ObjectReader(store)
        self._store = store
        self._segment = segment_blocks

    def tokens(self, base: TokenTree, tail: TailView) -> TokenTree:
        """The token tree of `base` with `tail` behind its segments; the unfinished block ends the last page."""
        ids, doc, fill = tail.ids, tail.doc, tail.fill
        rest = len(tail.open_ids)
        blocks = tail.start + len(ids)
        if rest:
            row = np.zeros((1, BLOCK), np.uint32)
            row[0, :rest] = tail.open_ids
            ids = np.concatenate((ids, row))
            # Only an open document has an unfinished block, and it is the last one.
            doc = np.concatenate((doc, np.array([tail.open_document], np.uint32)))
            fill = np.concatenate((fill, np.array([rest], np.uint8)))

        def cut(start: int, stop: int) -> bytes:
            span = slice(start - tail.start, stop - tail.start)
            return token_object(ids[span], doc[span], fill[span])

        strand = self._strand(base.strand, cut, blocks, tail.start + len(ids), None)
        return TokenTree(strand=strand, blocks=blocks, open_tokens=rest)

    def documents(self, base: DocumentTree, newest: tuple[DocumentRecord, ...], tail: TailView) -> DocumentTree:
        """The provenance of `base` with the documents behind its sealed pages replaced by `newest`."""

        def cut(start: int, stop: int) -> bytes:
            span = slice(start - tail.start, stop - tail.start)
            return span_object(tail.chars[span], tail.lines[span])

        blocks = tail.start + len(tail.ids)
        # A record that still changes is not sealed.
        closed = len(newest) - (1 if newest and newest[-1].open else 0)
        full = closed // PAGE_RECORDS * PAGE_RECORDS
        pages = [
            self._store.put(page_object(list(newest[at : at + PAGE_RECORDS]))) for at in range(0, len(newest), PAGE_RECORDS)
        ]
        sealed = full // PAGE_RECORDS
        segments = merkle.append(self._reader, self._store, base.records.segments, pages[:sealed])
        return DocumentTree(
            count=base.records.segments.count * PAGE_RECORDS + len(newest),
            records=Strand(segments, tuple(pages[sealed:])),
            spans=self._strand(base.spans, cut, blocks, blocks, None),
        )

    def gists(self, base: GistTree, rows: GistRows, blocks: int, tokens: MerkleList) -> GistTree:
        """The layer of `base` with `rows` behind its segments, up to `blocks` blocks. `tokens` are the token
        segments, whose names key the layer's."""
        inner = inner_levels(self._segment)

        def cut(start: int, stop: int) -> bytes:
            lods = {
                lod: rows.rows(lod)[nodes(start, lod) - rows.first(lod) : nodes(stop, lod) - rows.first(lod)]
                for lod in range(1, inner + 1)
            }
            whole = stop - start == self._segment
            name = merkle.get(self._reader, tokens, start // self._segment) if whole else ""
            return gist_object(base.spec, name, {lod: lods[lod] for lod in lods if len(lods[lod])})

        strand = self._strand(base.strand, cut, blocks, blocks, rows.source(inner))
        return GistTree(spec=base.spec, strand=strand, blocks=blocks)

    def _strand(self, base: Strand, cut: Cut, whole: int, stop: int, rows: RowSource | None) -> Strand:
        """`base` with the segments that `whole` complete blocks fill, then pages up to `stop`."""
        first, sealed = base.segments.count, whole // self._segment

        def new() -> Iterator[str]:
            for number in range(first, sealed):
                yield self._store.put(cut(number * self._segment, (number + 1) * self._segment))

        segments = merkle.append(self._reader, self._store, base.segments, new(), rows)
        pages = [
            self._store.put(cut(at, min(at + PAGE_BLOCKS, stop))) for at in range(sealed * self._segment, stop, PAGE_BLOCKS)
        ]
        return Strand(segments, tuple(pages))
