"""Writing documents to a branch: block by block or token by token, acknowledged by `sync`, settled by `commit`."""

from __future__ import annotations

import json
import time as clock
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from megacontext.core.node import BLOCK, BoolArray
from megacontext.errors import InvalidInput
from megacontext.storage.documents import DocumentRecord
from megacontext.storage.gists import Layer, LayerSpec, NewGists
from megacontext.storage.hashing import canonical
from megacontext.storage.hold import BranchHold
from megacontext.storage.journal import Record, RecordKind
from megacontext.storage.labels import checked_names
from megacontext.storage.patches import Patches, checked, to_arrays
from megacontext.storage.place import Place
from megacontext.storage.segment import UNKNOWN
from megacontext.storage.state import ActiveDocument, layer_tree, spec_metadata
from megacontext.storage.tensors import U32, Array


class Resumed(NamedTuple):
    """What is there already of a document: `blocks` complete blocks, `tokens` real tokens in all, and
    `open_ids` uint32 [k], the tokens in its unfinished block."""

    blocks: int
    tokens: int
    open_ids: U32


class BranchWriter(BranchHold):
    """The writer of a branch; get it from `Repository.writer`, use it as a context manager.

    With a `layer`, every append brings the gists of exactly the nodes it completes, at every level. After
    a crash, what was written with another layer is committed first, and an unfinished document of it dropped.
    Every method checks its input before anything is written.
    """

    def __init__(self, place: Place, branch: str, layer: LayerSpec | None) -> None:
        super().__init__(place, branch)
        # Only a document that an earlier process left may be resumed; in this one it is a forgotten end.
        self._left_over = self._state.active
        self.layer = layer
        try:
            if self._state.spec != layer:
                self._change_layer(layer)
        except BaseException:
            self.close()
            raise

    @property
    def blocks(self) -> int:
        """Complete blocks of the timeline, those of the document being written included: the index of the
        next block, and the key to the indices of the gists that it needs."""
        return self._state.tail.blocks

    @property
    def open_ids(self) -> U32:
        """Tokens of the unfinished block, uint32 [k]."""
        return self._state.tail.open_ids

    @property
    def document(self) -> DocumentRecord | None:
        """The document being written, open or unfinished."""
        return self._state.active.record if self._state.active else None

    def written_layer(self) -> Layer:
        """The gist layer with everything that was written, the unfinished document's gists included: what a
        resumed writer builds on. Raises InvalidInput for a writer without a layer."""
        if self.layer is None or self._state.tail.gists is None:
            raise InvalidInput("this writer was opened without a gist layer")
        tree = layer_tree(self._place.reader, self._state.base, self.layer)
        return Layer(self._place.reader, self._place.segment_blocks, tree, self._state.tail.gists, self.blocks)

    def begin_document(
        self,
        *,
        source: str,
        text_hash: str = "",
        media_type: str = "text/plain",
        version: int = 1,
        tags: Sequence[str] = (),
        labels: Sequence[str] = (),
        ingested_at: float | None = None,
        open: bool = False,
        chars: int = 0,
    ) -> Resumed:
        """Begins a document, or resumes one.

        A document is invisible until `end_document`. If a crash left it unfinished, beginning it again with the same
        source and text hash resumes it, and any other begin drops it. With `open` it is a conversation: visible at
        once, written by `append_tokens`, and continued by beginning the same source again, also after a commit. `chars`, how
        long its text will be, tells who watches how far it is.
        """
        begun = DocumentRecord(
            ordinal=0,
            source=source,
            version=version,
            text_hash=text_hash,
            media_type=media_type,
            ingested_at=clock.time() if ingested_at is None else ingested_at,
            tags=tuple(tags),
            labels=checked_names(labels),
            open=open,
            chars=chars,
        )
        active = self._state.active
        if active and _same(active.begun, begun) and (open or active is self._left_over):
            self._left_over = None
            return Resumed(active.blocks, active.tokens, self.open_ids)
        if active and active.begun.open:
            raise InvalidInput(f"{active.begun.source} is still open; end it, or continue it by beginning the same source")
        if active and active is not self._left_over:
            raise InvalidInput(f"{active.begun.source} is still being written; end or abort it first")
        if active:
            self.abort_document()
        metadata = {"document": canonical(begun.to_json()).decode()}
        if open:
            metadata["open"] = "1"
        self._write(Record(RecordKind.BEGIN, metadata, {}))
        return Resumed(0, 0, self.open_ids)

    def append_blocks(
        self,
        ids: Array,
        fill: Array | None = None,
        *,
        gists: NewGists | None = None,
        chars: ArrayLike | None = None,
        lines: ArrayLike | None = None,
        pruned: BoolArray | None = None,
    ) -> None:
        """Adds blocks to the document: `ids` [n, 32] of any integer type; `fill` [n], real tokens of each, where only
        the last may have fewer than 32 and then ends the document; `gists` {lod: (first index, float16 [m, g, d])};
        `chars` and `lines` [n], where each block starts in the text (lines from 1; -1 for unknown); `pruned` bool [n], whose
        raw tokens the next commit puts into the archive."""
        active = self._writing(open=False)
        if ids.ndim != 2 or ids.shape[1] != BLOCK:
            raise InvalidInput(f"blocks are [n, {BLOCK}], not {ids.shape}")
        count = len(ids)
        filled = np.full(count, BLOCK, np.uint8) if fill is None else np.asarray(fill)
        if filled.shape != (count,) or (count and not 1 <= filled.min() <= filled.max() <= BLOCK):
            raise InvalidInput(f"fill gives 1 to {BLOCK} tokens for each of the {count} blocks")
        if active.closed or (count and filled[:-1].size and filled[:-1].min() < BLOCK):
            raise InvalidInput("only a document's last block may hold filling")
        arrays: dict[str, Array] = {"ids": _uint32(ids), "fill": filled.astype(np.uint8, copy=False)}
        if pruned is not None and pruned.any():
            arrays["pruned"] = pruned.astype(np.uint8)
        self._write_rows(RecordKind.BLOCKS, arrays, count, gists, chars, lines)

    def append_tokens(
        self,
        ids: Array,
        *,
        gists: NewGists | None = None,
        chars: ArrayLike | None = None,
        lines: ArrayLike | None = None,
    ) -> None:
        """Adds tokens [k] to the open document, at any cut. Where `open_ids` and these together complete blocks, the
        gists that those complete come along; `chars` and `lines` [n] are for the n completed blocks."""
        self._writing(open=True)
        if ids.ndim != 1:
            raise InvalidInput(f"tokens are [k], not {ids.shape}")
        count = (len(self.open_ids) + len(ids)) // BLOCK
        self._write_rows(RecordKind.TOKENS, {"ids": _uint32(ids)}, count, gists, chars, lines)

    def end_document(
        self,
        *,
        chars: int = 0,
        lines: int = 0,
        text_hash: str | None = None,
        original: bytes | str | None = None,
        pad: int = 0,
        gists: NewGists | None = None,
        replaces: DocumentRecord | None = None,
        patches: Patches | None = None,
    ) -> DocumentRecord:
        """Ends the document: from now on a reader sees it. `chars` and `lines` are the length of its text; `original` its
        source's bytes where decoding the tokens does not give them back, or the name of the object that has them. The
        unfinished block of an open document is filled with `pad`, and the gists it completes come along. From then on the
        blocks of `replaces`, an earlier document of this branch, are dead; `patches` are the gists of all nodes above level 1
        that hold some of them, made again from what is live. Acknowledge with `sync`."""
        active = self._writing(open=None)
        rest = 1 if len(self.open_ids) else 0
        arrays = self._deaths(replaces, patches, rest) if replaces is not None else {}
        kept = original if isinstance(original, str) else ""
        if isinstance(original, bytes):
            kept = self._store.put(original)
            self._store.sync()
        metadata = {
            "chars": str(chars),
            "lines": str(lines),
            "text_hash": active.begun.text_hash if text_hash is None else text_hash,
            "original": kept,
            "pad": str(pad),
            "replaces": str(-1 if replaces is None else replaces.ordinal),
            "labels": json.dumps(self._inherited(active.begun.labels, replaces)),
        }
        self._write_rows(RecordKind.END, arrays, rest, gists, None, None, metadata)
        self._left_over = None
        return self._state.records[-1]

    def remove_document(
        self, record: DocumentRecord, patches: Patches | None = None, *, removed_at: float | None = None
    ) -> DocumentRecord:
        """Takes a document out: adds a tombstone for its source and makes its blocks dead; `patches` as in `end_document`.
        Raises InvalidInput where it is no live document of this branch, or another one is being written."""
        if self._state.active is not None and self._state.active is self._left_over and not self._left_over.begun.open:
            self.abort_document()
        if self._state.active is not None:
            raise InvalidInput(f"{self._state.active.begun.source} is still being written; end or abort it first")
        tombstone = DocumentRecord(
            ordinal=0,
            source=record.source,
            version=record.version + 1,
            media_type=record.media_type,
            ingested_at=clock.time() if removed_at is None else removed_at,
            labels=self._inherited((), record),
            removed=True,
            replaces=record.ordinal,
        )
        arrays = self._deaths(record, patches, 0)
        metadata = {**spec_metadata(self.layer), "document": canonical(tombstone.to_json()).decode()}
        self._write(Record(RecordKind.REMOVE, metadata, arrays))
        return self._state.records[-1]

    def label_blocks(self, names: Sequence[str], start: int, stop: int) -> None:
        """Puts labels on blocks `start:stop` beside those of their document. Not in the journal: the next `commit` settles
        it, and a crash before that forgets it, so it is for what is written and committed in one go."""
        if not 0 <= start <= stop <= self.blocks:
            raise InvalidInput(f"no blocks {start}:{stop}; there are {self.blocks}")
        self._state.relabelled = self._state.relabelled.add(checked_names(names), start, stop)

    def _inherited(self, labels: Sequence[str], replaces: DocumentRecord | None) -> tuple[str, ...]:
        """The labels of a document: its own, and all that any part of the one that it replaces carries. Nobody knows where
        in the new text that part is, so the whole is labelled until somebody says otherwise."""
        if replaces is None:
            return tuple(labels)
        now = self._state.labels()
        return tuple(sorted({*labels, *now.marks(replaces).labels, *now.carried(*replaces.span)}))

    def _deaths(self, record: DocumentRecord, patches: Patches | None, more: int) -> dict[str, Array]:
        """What makes the blocks of `record` dead, in a timeline of `more` blocks than there are."""
        start, stop = record.start_block, record.start_block + record.blocks
        alive = not self._state.dead.within(start, stop) and stop <= self.blocks
        if record.removed or record.open or record.ordinal >= self._state.next_ordinal or not alive:
            raise InvalidInput(f"{record.source} (version {record.version}) is not a live document of this branch")
        shape = self.layer.shape if self.layer else None
        fresh = checked(patches, shape, self.blocks + more)
        if start == stop:
            return {}
        return {"dead": np.array([[start, stop]], np.int64), **to_arrays(fresh)}

    def abort_document(self) -> None:
        """Drops the document being written; one that is open was visible and can only be ended."""
        active = self._state.active
        if active is None or active.begun.open:
            raise InvalidInput("there is no unfinished document to abort")
        self._left_over = None
        self._write(Record(RecordKind.ABORT, {}, {}))

    def _writing(self, *, open: bool | None) -> ActiveDocument:
        """The document being written, if it is of that kind (None: of either)."""
        active = self._state.active
        if active is None:
            raise InvalidInput("no document is being written; begin one first")
        if open is not None and active.begun.open != open:
            call = "append_tokens" if active.begun.open else "append_blocks"
            raise InvalidInput(f"{active.begun.source} is written with {call}")
        # An open document that was left behind is whole so far and may be ended as it is.
        if active is self._left_over and not (open is None and active.begun.open):
            raise InvalidInput(f"{active.begun.source} was left by a crash; begin it again to resume it")
        return active

    def _write_rows(
        self,
        kind: RecordKind,
        arrays: dict[str, Array],
        count: int,
        gists: NewGists | None,
        chars: ArrayLike | None,
        lines: ArrayLike | None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Checks what comes with `count` new blocks and writes the record."""
        if self._state.tail.gists:
            for lod, rows in self._state.tail.gists.check(count, gists).items():
                arrays[f"lod{lod}"] = rows
        elif gists:
            raise InvalidInput("this writer was opened without a gist layer; it takes no gists")
        for name, starts in (("chars", chars), ("lines", lines)):
            if starts is not None:
                arrays[name] = _starts(starts, count, name)
        self._write(Record(kind, {**spec_metadata(self.layer), **(metadata or {})}, arrays))

    def _write(self, record: Record) -> None:
        """The journal first: what cannot be written has not happened."""
        self._journal.append(record)
        self._state.apply(record)

    def _change_layer(self, layer: LayerSpec | None) -> None:
        if self._journal.records:
            self.commit("Recovered what was acknowledged before a crash")
        self._reload(layer)
        self._left_over = self._state.active


def _same(there: DocumentRecord, begun: DocumentRecord) -> bool:
    """Whether an unfinished document is the one that begins. An open one has no hash until it ends."""
    return (there.source, there.open) == (begun.source, begun.open) and (
        begun.open or (there.text_hash, there.labels) == (begun.text_hash, begun.labels)
    )


def _uint32(ids: Array) -> U32:
    """Token ids as uint32; raises InvalidInput for negative or larger ones."""
    if ids.dtype == np.uint32:
        return np.ascontiguousarray(ids)
    if ids.dtype.kind not in "iu" or (ids.size and not 0 <= ids.min() <= ids.max() <= UNKNOWN):
        raise InvalidInput(f"token ids are integers from 0 to 2**32 - 1, not {ids.dtype}")
    return np.ascontiguousarray(ids, np.uint32)


def _starts(values: ArrayLike, count: int, name: str) -> U32:
    array = np.asarray(values, np.int64)
    if array.shape != (count,) or (count and not -1 <= array.min() <= array.max() < UNKNOWN):
        raise InvalidInput(f"{name} gives one start, or -1, for each of the {count} completed blocks")
    return np.where(array < 0, UNKNOWN, array).astype(np.uint32)
