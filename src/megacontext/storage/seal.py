"""From a branch's state to the objects of a commit: full segments are sealed, the rest becomes pages.

Objects are only staged here. What a commit looks like depends on the content alone, never on how it came
in or where earlier commits were made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.storage import merkle
from megacontext.storage.dead import DeadRanges, load_dead
from megacontext.storage.documents import PAGE_RECORDS, DocumentRecord, DocumentTree, page_object
from megacontext.storage.gists import GISTS, NOTHING, GistRows, GistTree, gist_object, inner_levels, nodes
from megacontext.storage.labels import Labels
from megacontext.storage.merkle import ARITY, MerkleList, RowSource
from megacontext.storage.objects import LocalObjectStore, ObjectReader
from megacontext.storage.patches import Overlay
from megacontext.storage.segment import PAGE_BLOCKS, Strand, TokenTree, span_object, token_object
from megacontext.storage.tail import TailView

# The object of blocks `start:stop` of the timeline.
Cut = Callable[[int, int], bytes]
# The same, staged: its name.
Put = Callable[[int, int], str]


class Sealer:
    """Stages the objects of one commit."""

    def __init__(self, store: LocalObjectStore, segment_blocks: int) -> None:
        # Sees what is staged; the readers that snapshots share see only what is durable.
        self._reader = ObjectReader(store)
        self._store = store
        self._segment = segment_blocks

    def tokens(self, base: TokenTree, tail: TailView) -> TokenTree:
        """The token tree of `base` with `tail` behind its segments; the unfinished block ends the last page. What holds pruned
        blocks goes to the archive."""
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

        def put(start: int, stop: int) -> str:
            data, gone = cut(start, stop), pruned.within(start, stop)
            return self._store.put_pruned(data, gone) if gone else self._store.put(data)

        pruned = DeadRanges(tail.pruned)
        strand = self._strand(base.strand, put, blocks, tail.start + len(ids), None)
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
            spans=self._strand(base.spans, self._putting(cut), blocks, blocks, None),
        )

    def dead(self, dead: DeadRanges) -> str:
        """The object that names dead blocks; '' for none."""
        return self._store.put(dead.to_bytes()) if len(dead) else ""

    def labels(self, labels: Labels, before: Labels, name: str) -> str:
        """The object with these labels, which come after those `before`, of that `name`; '' for none."""
        if labels == before:
            return name
        return self._store.put(replace(labels, before=name).to_bytes())

    def gists(
        self,
        base: GistTree,
        rows: GistRows,
        blocks: int,
        tokens: MerkleList,
        dead: DeadRanges,
        overlay: Overlay = NOTHING,
        erased: Sequence[tuple[int, int]] = (),
    ) -> GistTree:
        """The layer of `base` with `rows` behind its segments, up to `blocks` blocks, and with the gists of `overlay`, which
        are those that `dead` changes, or that were made of blocks in the `erased` ranges. `tokens` are the token segments,
        whose names key the layer's."""
        inner = inner_levels(self._segment)

        def cut(start: int, stop: int) -> bytes:
            lods = {}
            for lod in range(1, inner + 1):
                low, high = nodes(start, lod), nodes(stop, lod)
                found = rows.rows(lod)[low - rows.first(lod) : high - rows.first(lod)]
                lods[lod] = overlay.on_range(lod, low, high, found)
            whole = stop - start == self._segment
            name = merkle.get(self._reader, tokens, start // self._segment) if whole else ""
            some = {lod: lods[lod] for lod in lods if len(lods[lod])}
            return gist_object(base.spec, name, some, dead.mask_name(start, stop))

        sealed = base.strand
        # What of an older layer died since: a new one has nothing that could have.
        died = dead.without(load_dead(self._reader, base.dead)) if base.blocks else []
        if died or erased:
            sealed = Strand(self._remade(base, [*died, *erased], tokens, dead, overlay), base.strand.pages)
        strand = self._strand(sealed, self._putting(cut), blocks, blocks, rows.source(inner, overlay))
        return GistTree(spec=base.spec, strand=strand, blocks=blocks, dead=self.dead(dead))

    def _remade(
        self, base: GistTree, changed: list[tuple[int, int]], tokens: MerkleList, dead: DeadRanges, overlay: Overlay
    ) -> MerkleList:
        """The sealed part of a layer over `tokens` in which ranges of blocks died or were erased."""
        segments, size, inner = base.strand.segments, self._segment, inner_levels(self._segment)
        touched = {number for start, stop in changed for number in range(start // size, -(-stop // size))}
        names = {}
        for number in sorted(number for number in touched if number < segments.count):
            arrays = self._reader.tensors(merkle.get(self._reader, segments, number), GISTS).arrays
            lods = {}
            for lod in range(1, inner + 1):
                low, high = nodes(number * size, lod), nodes((number + 1) * size, lod)
                lods[lod] = overlay.on_range(lod, low, high, arrays[f"lod{lod}"])
            mask = dead.mask_name(number * size, (number + 1) * size)
            over = merkle.get(self._reader, tokens, number)
            names[number] = self._store.put(gist_object(base.spec, over, lods, mask))
        rows = {}
        for lod, index, new in overlay:
            level = lod - inner - 1
            full = segments.count // ARITY**level if level >= 0 else 0
            rows.update({(level, int(at)): row for at, row in zip(index, new, strict=True) if at < full})
        return merkle.rewrite(self._reader, self._store, segments, names, rows)

    def _putting(self, cut: Cut) -> Put:
        return lambda start, stop: self._store.put(cut(start, stop))

    def _strand(self, base: Strand, put: Put, whole: int, stop: int, rows: RowSource | None) -> Strand:
        """`base` with the segments that `whole` complete blocks fill, then pages up to `stop`."""
        first, sealed = base.segments.count, whole // self._segment

        def new() -> Iterator[str]:
            for number in range(first, sealed):
                yield put(number * self._segment, (number + 1) * self._segment)

        segments = merkle.append(self._reader, self._store, base.segments, new(), rows)
        pages = [put(at, min(at + PAGE_BLOCKS, stop)) for at in range(sealed * self._segment, stop, PAGE_BLOCKS)]
        return Strand(segments, tuple(pages))
