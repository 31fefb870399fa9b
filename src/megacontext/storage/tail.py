"""The tail of a branch in memory: everything behind its last sealed segment, at every level."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.core.ranges import BlockRange, joined
from megacontext.storage.column import Rows
from megacontext.storage.gists import NOTHING, GistRows
from megacontext.storage.objects import ObjectReader
from megacontext.storage.patches import Overlay
from megacontext.storage.segment import SPANS, Strand, TokenTree
from megacontext.storage.tensors import U8, U32


class Tail:
    """Blocks from `start` (a segment's boundary) on, and the tokens of an unfinished block behind them.

    Rows are only appended or cut from the end, so views of the rows before a cut stay as they are.
    """

    def __init__(self, start: int, gists: GistRows | None) -> None:
        self.start = start
        self.gists = gists
        self.ids = Rows((BLOCK,), np.uint32)
        self.doc = Rows((), np.uint32)
        self.fill = Rows((), np.uint8)
        self.chars = Rows((), np.uint32)
        self.lines = Rows((), np.uint32)
        self.open_ids: U32 = np.empty(0, np.uint32)
        self.pruned: tuple[BlockRange, ...] = ()

    @property
    def blocks(self) -> int:
        """Complete blocks of the whole timeline, this tail's included."""
        return self.start + self.ids.count

    def append(self, ids: U32, fill: U8, chars: U32, lines: U32, document: int) -> None:
        """Adds complete blocks of one document: `ids` [n, 32], the others [n]."""
        self.extend(ids, np.full(len(ids), document, np.uint32), fill, chars, lines)

    def extend(self, ids: U32, doc: U32, fill: U8, chars: U32, lines: U32) -> None:
        """Adds complete blocks of the documents with ordinals `doc` [n]."""
        self.ids.append(ids)
        self.doc.append(doc)
        self.fill.append(fill)
        self.chars.append(chars)
        self.lines.append(lines)

    def truncate(self, blocks: int) -> None:
        """Drops the blocks from `blocks` (of the timeline) on, and the unfinished one."""
        for rows in (self.ids, self.doc, self.fill, self.chars, self.lines):
            rows.truncate(blocks - self.start)
        if self.gists:
            self.gists.truncate(blocks)
        self.open_ids = self.open_ids[:0]
        self.pruned = tuple((start, min(stop, blocks)) for start, stop in self.pruned if start < blocks)

    def prune(self, ranges: Iterable[BlockRange]) -> None:
        """From now on the raw tokens of these blocks (of the timeline) count as pruned; this tail has them all the same, since
        what follows is sealed with them."""
        self.pruned = joined((*self.pruned, *ranges))

    def after(self, block: int, overlay: Overlay = NOTHING) -> Tail:
        """A copy of the tail from `block`, a segment's boundary, on, with the gists of `overlay` written into it."""
        rest = Tail(block, self.gists.after(block, overlay) if self.gists else None)
        offset = block - self.start
        rest.ids, rest.doc = self.ids.after(offset), self.doc.after(offset)
        rest.fill = self.fill.after(offset)
        rest.chars, rest.lines = self.chars.after(offset), self.lines.after(offset)
        rest.open_ids = self.open_ids
        rest.pruned = tuple((max(start, block), stop) for start, stop in self.pruned if stop > block)
        return rest

    def view(self, blocks: int, open_document: int) -> TailView:
        """The tail up to `blocks` blocks (of the timeline), and the unfinished block, which only document
        `open_document` can have."""
        stop = blocks - self.start
        return TailView(
            start=self.start,
            ids=self.ids.view(0, stop),
            doc=self.doc.view(0, stop),
            fill=self.fill.view(0, stop),
            chars=self.chars.view(0, stop),
            lines=self.lines.view(0, stop),
            open_ids=self.open_ids,
            open_document=open_document,
            pruned=self.pruned,
        )


class TailView(NamedTuple):
    """Read-only arrays of a tail at one moment."""

    start: int
    ids: U32
    doc: U32
    fill: U8
    chars: U32
    lines: U32
    open_ids: U32
    open_document: int
    pruned: tuple[BlockRange, ...] = ()


def load_tail(
    reader: ObjectReader,
    tokens: TokenTree,
    spans: Strand,
    segment_blocks: int,
    gists: GistRows | None,
) -> Tail:
    """The tail of a commit, from its pages."""
    tail = Tail(tokens.strand.segments.count * segment_blocks, gists)
    for name in tokens.strand.pages:
        arrays, pruned = reader.blocks(name)
        tail.prune((tail.blocks + start, tail.blocks + stop) for start, stop in pruned)
        whole = min(tokens.blocks - tail.blocks, len(arrays["ids"]))
        tail.ids.append(arrays["ids"][:whole])
        tail.doc.append(arrays["doc"][:whole])
        tail.fill.append(arrays["fill"][:whole])
        if whole < len(arrays["ids"]):
            tail.open_ids = arrays["ids"][whole, : tokens.open_tokens].copy()
    for name in spans.pages:
        arrays = reader.tensors(name, SPANS).arrays
        tail.chars.append(arrays["chars"])
        tail.lines.append(arrays["lines"])
    return tail
