"""Copying documents from one state of a memory to another, with the gists of their blocks.

No block passes through GistNet again; only the levels above are made for where it now stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from megacontext.core import BLOCK
from megacontext.core.node import BoolArray
from megacontext.core.ranges import BlockRange, BlockRanges, joined
from megacontext.engine.bundle import Bundle
from megacontext.engine.gist_builder import F16, U8, U32, GistBuilder, NoGists
from megacontext.engine.merge_plan import Edit, Plan, put_labels
from megacontext.engine.remove import remove_one
from megacontext.storage import BranchWriter, DocumentRecord, Snapshot, Transaction

Starts = ArrayLike | None

# Blocks that are copied together, and after how many an intermediate commit bounds the journal and the memory used.
BATCH_BLOCKS = 512
COMMIT_BLOCKS = 32_768


def carry_out(
    transaction: Transaction, bundle: Bundle, other: Snapshot, plan: Plan, pruned: Iterable[BlockRange] = ()
) -> tuple[str, int]:
    """Carries out `plan` with documents of `other`, aside; returns the commit that holds the result, for the transaction to
    apply, and how many blocks were written. Blocks of `other` that are `pruned` are so in the result; it has to give out their
    tokens all the same."""
    builder = GistBuilder(bundle.base, bundle.gists) if bundle.gists is not None else None
    with transaction.writer(builder.spec if builder else None) as writer:
        copying = _Copying(writer, builder, other, pruned)
        start = writer.blocks
        put_labels(writer, plan.labels)
        for edit in plan.edits:
            copying(edit)
        return writer.commit(), writer.blocks - start


class _Copying:
    """Carries out edits in a writer, with documents of another state."""

    def __init__(
        self, writer: BranchWriter, builder: GistBuilder | None, other: Snapshot, pruned: Iterable[BlockRange]
    ) -> None:
        self._writer, self._builder, self._other = writer, builder, other
        self._pruned = BlockRanges.of(joined(pruned))
        self._timeline = writer.snapshot().timeline()
        self._committed = writer.blocks
        # Blocks whose gists the other state has, made by the same GistNet.
        self._gisted = other.layers.get(builder.spec.fingerprint, 0) if builder else 0

    def __call__(self, edit: Edit) -> None:
        replaced = edit.replaced
        if edit.take is not None:
            self._copy(edit, edit.take)
        elif replaced is not None:
            remove_one(self._writer, self._builder, replaced)
            self._timeline = self._timeline.extend(self._writer.blocks).kill(*replaced.span)
        if self._writer.blocks - self._committed >= COMMIT_BLOCKS:
            self._writer.commit("A part of a change of the whole branch")
            self._committed = self._writer.blocks

    def _copy(self, edit: Edit, record: DocumentRecord) -> None:
        writer, replaced = self._writer, edit.replaced
        writer.begin_document(
            source=edit.source,
            text_hash=record.text_hash,
            media_type=record.media_type,
            version=edit.over.version + 1 if edit.over else 1,
            tags=self._other.labels.marks(record).tags,
            labels=self._other.labels.marks(record).labels,
            ingested_at=record.ingested_at,
        )
        for start, stop in _pieces(*record.span):
            blocks = np.arange(start, stop, dtype=np.int64)
            chars, lines = self._other.spans_at(blocks)
            gone = self._pruned.touch(blocks, blocks + 1)
            ids, fill = self._other.tokens(start, stop), self._other.fill(start, stop)
            self._append(ids, fill, self._gists(start, stop), chars, lines, gone)
        rest = len(self._other.open_ids) if record.open else 0
        if rest:
            last = np.zeros((1, BLOCK), np.uint32)
            last[0, :rest] = self._other.open_ids
            self._append(last, np.array([rest], np.uint8), None, None, None, None)
        patches = None
        if replaced is not None:
            self._timeline = self._timeline.extend(writer.blocks).kill(*replaced.span)
            if self._builder is not None:
                patches = self._builder.remake(writer.written_layer(), self._timeline, [replaced.span])
        copied = writer.end_document(
            chars=record.chars, lines=record.lines, original=record.original or None, replaces=replaced, patches=patches
        )
        for name, start, stop in self._other.labels.parts(*record.span):
            writer.label_blocks([name], copied.start_block + start, copied.start_block + stop)

    def _gists(self, start: int, stop: int) -> F16 | None:
        """LOD1 gists of blocks of the other state, where it has them."""
        if self._builder is None or stop > self._gisted:
            return None
        return self._other.gists(1, start, stop, self._builder.spec.fingerprint)

    def _append(
        self, ids: U32, fill: U8, level_one: F16 | None, chars: Starts, lines: Starts, pruned: BoolArray | None
    ) -> None:
        gists = None
        if self._builder is not None:
            stored = self._writer.written_layer() if self._writer.blocks else NoGists()
            gists = self._builder.extend(stored, ids, fill, timeline=self._timeline, level_one=level_one)
        self._writer.append_blocks(ids, fill, gists=gists, chars=chars, lines=lines, pruned=pruned)


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for at in range(start, stop, BATCH_BLOCKS):
        yield at, min(at + BATCH_BLOCKS, stop)
