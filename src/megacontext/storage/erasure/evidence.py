"""What an erasure takes away, as bytes that a scan can find, and what the new commits have to look like without it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from megacontext.errors import InvariantError
from megacontext.storage.commit import load_layer
from megacontext.storage.documents import DocumentRecord
from megacontext.storage.erasure.doomed import Doomed, Records
from megacontext.storage.erasure.needles import GISTS, TOKENS, Needle
from megacontext.storage.erasure.rewrite import Rewritten, Spans, blocks_of, by_segment
from megacontext.storage.gists import GistTree, Layer, load_rows
from megacontext.storage.merkle import get
from megacontext.storage.objects import ObjectReader
from megacontext.storage.patches import Patches
from megacontext.storage.segment import PAGE_BLOCKS, TokenTree
from megacontext.storage.segment import TOKENS as TOKEN_OBJECT
from megacontext.storage.snapshot import Snapshot
from megacontext.storage.state import Base, BranchState
from megacontext.storage.tensors import Array


@dataclass
class _Expected:
    """How the commit that takes an old one's place has to look: blank `spans`, and of each layer the `spans` that it covers
    and its nodes that changed."""

    spans: Spans
    layers: dict[str, tuple[Spans, Patches]] = field(default_factory=dict)


class Evidence:
    """Takes note of what goes while history is rewritten (`rewrite.Witness`), and checks the result.

    `records` are the distinct records that go, `blocks` the rows of tokens that were blanked (each object counted once).
    """

    def __init__(self, reader: ObjectReader, segment_blocks: int) -> None:
        self._reader, self._segment = reader, segment_blocks
        self._tokens: dict[bytes, None] = {}
        self._gists: dict[bytes, None] = {}
        self._seen: set[tuple[str, Spans]] = set()
        self._expected: dict[str, _Expected] = {}
        self._current = _Expected(spans=())
        self.records: dict[DocumentRecord, None] = {}
        self.blocks = 0

    def commit(self, base: Base, gone: Sequence[DocumentRecord], spans: Spans) -> None:
        """See `rewrite.Witness`."""
        self._current = self._expected[base.name] = _Expected(spans=spans)
        self.records.update(dict.fromkeys(gone))
        for name, inside in _pieces(self._reader, base.tokens, spans, self._segment):
            if (name, inside) not in self._seen:
                self._seen.add((name, inside))
                ids = self._reader.tensors(name, TOKEN_OBJECT).arrays["ids"]
                rows = ids[blocks_of(inside)]
                self.blocks += len(rows)
                self._add(self._tokens, rows)
        if gone[-1].open and base.tokens.open_tokens:
            last = self._reader.tensors(base.tokens.strand.pages[-1], TOKEN_OBJECT).arrays["ids"][-1:]
            self._add(self._tokens, last)

    def layer(self, layer: Layer, tree: GistTree, spans: Spans, changed: Patches) -> None:
        """See `rewrite.Witness`."""
        self._current.layers[tree.spec.fingerprint] = spans, changed
        blocks = blocks_of(spans)
        if len(blocks):
            self._add(self._gists, layer.gists_at(1, blocks))
        for lod, (index, new) in changed.items():
            old = layer.gists_at(lod, index)
            self._add(self._gists, old[_differs(old, new)])

    def needles(self) -> list[Needle]:
        """The blocks and gists that go, as they are stored."""
        tokens = [Needle(TOKENS, data) for data in self._tokens]
        return tokens + [Needle(GISTS, data) for data in self._gists]

    def texts(self) -> set[str]:
        """The hashes of the texts that go."""
        return {record.text_hash for record in self.records if record.text_hash}

    def check(self, done: Rewritten, doomed: Doomed, reader: ObjectReader) -> None:
        """Reads the new commits back: raises InvariantError unless erased blocks are blank and dead in them, gists of them are
        zero, those above them were made again, and no record of them is left."""
        records = Records(reader, doomed)
        for old, expected in self._expected.items():
            base = Base.load(reader, done.renamed[old])
            snapshot = Snapshot(reader, BranchState.load(reader, base, self._segment, None), self._segment)
            blocks, timeline = blocks_of(expected.spans), snapshot.timeline()
            blank = not snapshot.tokens_at(blocks).any() and not snapshot.fill_at(blocks).any()
            dead = bool(timeline.dead_mask(np.zeros(len(blocks), np.int8), blocks).all())
            if not blank or not dead or records.doomed(base.commit):
                raise InvariantError(f"the commit in the place of {old} still holds something that was to be erased")
            for fingerprint, (spans, changed) in expected.layers.items():
                if fingerprint in base.commit.layers:
                    self._check_layer(reader, base.commit.layers[fingerprint], spans, changed, old)

    def _check_layer(self, reader: ObjectReader, root: str, spans: Spans, changed: Patches, old: str) -> None:
        tree = load_layer(reader, root)
        layer = Layer(reader, self._segment, tree, load_rows(reader, tree, self._segment), tree.blocks)
        blocks = blocks_of(spans)
        fine = not len(blocks) or not layer.gists_at(1, blocks).any()
        for lod, (index, new) in changed.items():
            fine = fine and not _differs(layer.gists_at(lod, index), new).any()
        if not fine:
            raise InvariantError(f"gists in the place of those of commit {old} still hold something that was to be erased")

    @staticmethod
    def _add(found: dict[bytes, None], rows: Array) -> None:
        found.update((row.tobytes(), None) for row in rows if row.any())


def _pieces(reader: ObjectReader, tokens: TokenTree, spans: Spans, size: int) -> Iterable[tuple[str, Spans]]:
    """The objects in which the ranges of blocks lie, and where in them."""
    sealed = tokens.strand.segments
    for number, inside in by_segment(spans, size, sealed.count).items():
        yield get(reader, sealed, number), inside
    start = sealed.count * size
    behind = tuple((max(low - start, 0), high - start) for low, high in spans if high > start)
    for number, inside in by_segment(behind, PAGE_BLOCKS, len(tokens.strand.pages)).items():
        yield tokens.strand.pages[number], inside


def _differs(left: Array, right: Array) -> Array:
    """Which rows differ in any bit, bool [m]."""
    bits = [np.ascontiguousarray(rows).view(np.uint16).reshape(len(rows), -1) for rows in (left, right)]
    differs: Array = (bits[0] != bits[1]).any(axis=1)
    return differs
