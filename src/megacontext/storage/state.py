"""What a branch holds at one moment: a commit, and journal records applied on top of it.

The writer applies each record after writing it; a reader or a restarted writer applies the same records
as it reads them. There is one such piece of code, so what is recovered is what was there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.errors import CorruptObject, InvalidInput
from megacontext.storage.commit import Commit, load_commit, load_documents, load_layer, load_tokens
from megacontext.storage.dead import DeadRanges, load_dead
from megacontext.storage.documents import (
    PAGE_RECORDS,
    DocumentRecord,
    DocumentTree,
    load_page,
)
from megacontext.storage.gists import NOTHING, GistRows, GistTree, LayerSpec, load_rows
from megacontext.storage.journal import Frame, Record, RecordKind
from megacontext.storage.labels import Labels, load_labels
from megacontext.storage.objects import ObjectReader
from megacontext.storage.patches import from_arrays
from megacontext.storage.segment import UNKNOWN, TokenTree
from megacontext.storage.tail import Tail, TailView, load_tail
from megacontext.storage.tensors import U8, U32, Array


@dataclass(frozen=True, kw_only=True)
class Base:
    """A commit with the roots it names."""

    name: str
    commit: Commit
    tokens: TokenTree
    documents: DocumentTree
    labels: Labels

    @classmethod
    def load(cls, reader: ObjectReader, name: str) -> Base:
        """Reads three small objects, and one more where there are labels."""
        commit = load_commit(reader, name)
        return cls(
            name=name,
            commit=commit,
            tokens=load_tokens(reader, commit),
            documents=load_documents(reader, commit),
            labels=load_labels(reader, commit.labels),
        )


class ActiveDocument:
    """The document that is being written. Its counters move; the record is made when it is asked for."""

    __slots__ = ("begun", "blocks", "closed", "tokens")

    def __init__(self, begun: DocumentRecord) -> None:
        self.begun = begun
        self.blocks = begun.blocks
        self.tokens = begun.tokens
        self.closed = False  # a block with filling ends the document

    @property
    def record(self) -> DocumentRecord:
        """The document so far."""
        return replace(self.begun, blocks=self.blocks, tokens=self.tokens)


class BranchState:
    """A commit plus records. `records` are the documents behind the sealed pages, `active` comes after them.

    An open active document is visible; another one is not until it ends.
    """

    def __init__(self, base: Base, tail: Tail, records: list[DocumentRecord], spec: LayerSpec | None, dead: DeadRanges) -> None:
        self.base = base
        # Neither changes in place: snapshots keep the ones they saw.
        self.dead = dead
        self.overlay = NOTHING
        self.died = False  # since the commit
        self.relabelled = base.labels  # as changed since, which only a commit settles
        self.tail = tail
        self.records = records
        self.spec = spec
        self.active: ActiveDocument | None = None
        if records and records[-1].open:
            self.active = ActiveDocument(records.pop())

    @classmethod
    def load(cls, reader: ObjectReader, base: Base, segment_blocks: int, spec: LayerSpec | None) -> BranchState:
        """The state at a commit. With `spec`, gists of that layer can be applied on top."""
        gists = _gist_rows(reader, base, segment_blocks, spec) if spec else None
        tail = load_tail(reader, base.tokens, base.documents.spans, segment_blocks, gists)
        records = [record for name in base.documents.records.pages for record in load_page(reader, name)]
        return cls(base, tail, records, spec, load_dead(reader, base.commit.dead))

    @property
    def next_ordinal(self) -> int:
        """The ordinal of the active document, or of the one that would begin next."""
        return self.base.documents.records.segments.count * PAGE_RECORDS + len(self.records)

    @property
    def visible_blocks(self) -> int:
        """Complete blocks that a reader may see."""
        if self.active and not self.active.begun.open:
            return self.active.begun.start_block
        return self.tail.blocks

    def visible_documents(self) -> tuple[DocumentRecord, ...]:
        """The documents behind the sealed pages that a reader may see."""
        if self.active and self.active.begun.open:
            return (*self.records, self.active.record)
        return tuple(self.records)

    def visible_tail(self) -> TailView:
        """The blocks and tokens behind the sealed segments that a reader may see."""
        return self.tail.view(self.visible_blocks, self.next_ordinal)

    def labels(self) -> Labels:
        """The labels that a reader has to heed, those of documents behind the commit included."""
        return self.relabelled.growing(self.visible_documents(), self.base.commit.blocks)

    def replay(self, frames: Iterable[Frame]) -> None:
        """Applies records as read from the journal."""
        for frame in frames:
            try:
                self.apply(frame.parse())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CorruptObject(
                    f"the journal record at byte {frame.offset} does not fit what precedes it: {error}"
                ) from error

    def apply(self, record: Record) -> None:
        """Applies one record that has been checked and written."""
        if record.kind == RecordKind.BEGIN:
            begun = DocumentRecord.from_json(json.loads(record.metadata["document"]))
            start, ordinal = self.tail.blocks, self.next_ordinal
            self.active = ActiveDocument(replace(begun, ordinal=ordinal, start_block=start))
        elif record.kind == RecordKind.BLOCKS:
            self._apply_blocks(record)
        elif record.kind == RecordKind.TOKENS:
            self._apply_tokens(record)
        elif record.kind == RecordKind.END:
            self._apply_end(record)
        elif record.kind == RecordKind.REMOVE:
            tombstone = DocumentRecord.from_json(json.loads(record.metadata["document"]))
            self.records.append(replace(tombstone, ordinal=self.next_ordinal, start_block=self.tail.blocks))
            self._apply_deaths(record)
        elif record.kind == RecordKind.ABORT:
            self.tail.truncate(self._active().begun.start_block)
            self.active = None

    def _active(self) -> ActiveDocument:
        if self.active is None:
            raise ValueError("no document is being written")
        return self.active

    def _apply_blocks(self, record: Record) -> None:
        active, arrays = self._active(), record.arrays
        if "pruned" in arrays:
            gone = (self.tail.blocks + np.flatnonzero(arrays["pruned"])).tolist()
            self.tail.prune((block, block + 1) for block in gone)
        self._extend(arrays, arrays["ids"], arrays["fill"])
        active.tokens += int(arrays["fill"].sum(dtype=np.int64))
        active.closed = len(arrays["fill"]) > 0 and int(arrays["fill"][-1]) < BLOCK

    def _apply_tokens(self, record: Record) -> None:
        active = self._active()
        ids = np.concatenate((self.tail.open_ids, record.arrays["ids"]))
        whole = len(ids) // BLOCK
        if whole:
            blocks = ids[: whole * BLOCK].reshape(whole, BLOCK)
            self._extend(record.arrays, blocks, np.full(whole, BLOCK, np.uint8))
        # A new array each time: snapshots keep the one they saw.
        self.tail.open_ids = ids[whole * BLOCK :]
        active.tokens += len(record.arrays["ids"])

    def _apply_end(self, record: Record) -> None:
        active, metadata = self._active(), record.metadata
        rest = len(self.tail.open_ids)
        if rest:
            block = np.full((1, BLOCK), int(metadata["pad"]), np.uint32)
            block[0, :rest] = self.tail.open_ids
            self._extend(record.arrays, block, np.array([rest], np.uint8))
            self.tail.open_ids = self.tail.open_ids[:0]
        finished = replace(
            active.record,
            chars=int(metadata["chars"]),
            lines=int(metadata["lines"]),
            text_hash=metadata["text_hash"],
            original=metadata["original"],
            open=False,
            replaces=int(metadata.get("replaces", "-1")),
            labels=tuple(json.loads(metadata["labels"])) if "labels" in metadata else active.begun.labels,
        )
        self.records.append(finished)
        self.active = None
        self._apply_deaths(record)

    def _apply_deaths(self, record: Record) -> None:
        if "dead" not in record.arrays:
            return
        self.dead, self.died = self.dead.copy(), True
        for start, stop in record.arrays["dead"].tolist():
            self.dead.add(start, stop)
        self.overlay = self.overlay.over(from_arrays(record.arrays))

    def _extend(self, arrays: Mapping[str, Array], ids: U32, fill: U8) -> None:
        count = len(ids)
        unknown = np.full(count, UNKNOWN, np.uint32)
        chars, lines = arrays.get("chars", unknown), arrays.get("lines", unknown)
        self.tail.append(ids, fill, chars, lines, self.next_ordinal)
        if self.tail.gists:
            lods = {int(name[3:]): rows for name, rows in arrays.items() if name.startswith("lod")}
            self.tail.gists.append(count, lods)
        self._active().blocks += count


def journal_spec(frames: Iterable[Frame]) -> LayerSpec | None:
    """The layer whose gists the records of a journal carry; None if they carry none."""
    for frame in frames:
        if frame.kind in (RecordKind.BLOCKS, RecordKind.TOKENS, RecordKind.END, RecordKind.REMOVE):
            return spec_from_metadata(frame.parse().metadata)
    return None


def spec_metadata(spec: LayerSpec | None) -> dict[str, str]:
    """How a record says whose gists it carries."""
    if spec is None:
        return {}
    return {
        "gistnet": spec.fingerprint,
        "vectors": str(spec.vectors),
        "width": str(spec.width),
    }


def spec_from_metadata(metadata: Mapping[str, str]) -> LayerSpec | None:
    """The inverse of `spec_metadata`."""
    if "gistnet" not in metadata:
        return None
    return LayerSpec(
        fingerprint=metadata["gistnet"],
        vectors=int(metadata["vectors"]),
        width=int(metadata["width"]),
    )


def layer_tree(reader: ObjectReader, base: Base, spec: LayerSpec) -> GistTree:
    """The layer of a commit with this spec; an empty one if there is none yet. Raises InvalidInput if the
    commit's layer of that GistNet has another shape."""
    root = base.commit.layers.get(spec.fingerprint)
    tree = load_layer(reader, root) if root else GistTree(spec=spec, dead=base.commit.dead)
    if tree.spec != spec:
        raise InvalidInput(f"the memory's gist layer is {tree.spec}, not {spec}")
    return tree


def _gist_rows(reader: ObjectReader, base: Base, segment_blocks: int, spec: LayerSpec) -> GistRows:
    tree = layer_tree(reader, base, spec)
    if tree.blocks != base.tokens.blocks:
        raise InvalidInput(
            f"gist layer {spec.fingerprint} covers {tree.blocks} of {base.tokens.blocks} blocks; "
            "bring it up to date with add_layer before writing on"
        )
    if tree.dead != base.commit.dead:
        raise InvalidInput(
            f"gist layer {spec.fingerprint} still holds blocks that are dead by now; bring it up to date with add_layer "
            "before writing on"
        )
    return load_rows(reader, tree, segment_blocks)
