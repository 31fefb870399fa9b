"""The walk of fsck from a commit through everything it names: is it there, whole, of the right shape?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.errors import DetailPruned, MegaContextError, StorageError
from megacontext.storage.commit import Commit, load_commit, load_documents, load_layer, load_tokens
from megacontext.storage.dead import DEAD, load_dead
from megacontext.storage.documents import PAGE_RECORDS, load_page
from megacontext.storage.gists import GISTS, GistTree, inner_levels, nodes
from megacontext.storage.labels import KIND as LABELS
from megacontext.storage.labels import load_labels
from megacontext.storage.merkle import ARITY, KIND, MerkleList, child, get
from megacontext.storage.objects import ObjectReader
from megacontext.storage.segment import PAGE_BLOCKS, SPANS, Strand, TokenTree
from megacontext.storage.tensors import Array


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: the object's or file's `name`, its `kind`, and `meaning`: what is lost by it."""

    name: str
    kind: str
    meaning: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.meaning}"


# Checks one stored piece of a strand: (its name, its first block, its last block + 1).
PieceCheck = Callable[[str, int, int], None]


class Walk:
    """Walks commits and gathers findings. What was walked once is not walked again."""

    def __init__(self, reader: ObjectReader, segment_blocks: int) -> None:
        self._reader = reader
        self._segment = segment_blocks
        self._seen: set[tuple[str, str]] = set()
        self.reached: set[str] = set()
        self.findings: dict[str, Finding] = {}

    def history(self, name: str) -> None:
        """A commit and all commits before it."""
        todo = [name]
        while todo:
            commit_name = todo.pop()
            commit = self._load(commit_name, "commit", "this state of the memory and its past", load_commit)
            if commit is not None:
                self._commit(commit_name, commit)
                todo.extend(commit.parents)

    def original(self, name: str, source: str) -> None:
        """The original of a document."""
        self._load(name, "original", f"the original of {source}", _original)

    def wrong(self, name: str, kind: str, meaning: str) -> None:
        """Notes a finding; the first one about an object stands."""
        self.findings.setdefault(name, Finding(name, kind, meaning))

    def _load(self, name: str, kind: str, lost: str, load: Callable[[ObjectReader, str], Any]) -> Any:
        """What `load` makes of an object that was not walked yet; else None."""
        if (kind, name) in self._seen:
            return None
        self._seen.add((kind, name))
        self.reached.add(name)
        try:
            return load(self._reader, name)
        except StorageError as error:
            self.wrong(name, kind, f"{error}; lost: {lost}")
        except (KeyError, TypeError, ValueError) as error:
            self.wrong(name, kind, f"it is not well formed ({error!r}); lost: {lost}")
        return None

    def _commit(self, name: str, commit: Commit) -> None:
        of = f"commit {name[:12]}"
        tokens = self._load(commit.tokens, TokenTree.KIND, f"all tokens of {of}", lambda reader, _: load_tokens(reader, commit))
        if tokens is not None:
            if (tokens.blocks, tokens.open_tokens) != (commit.blocks, commit.open_tokens):
                self.wrong(name, "commit", "its length differs from its token tree's")
            stored = tokens.blocks + (1 if tokens.open_tokens else 0)
            self._strand(tokens.strand, f"tokens of {of}", self._token_piece, tokens.blocks, stored, None)
        documents = self._load(
            commit.documents, "document-tree", f"provenance of {of}", lambda reader, _: load_documents(reader, commit)
        )
        if documents is not None:
            if documents.count != commit.document_count:
                self.wrong(name, "commit", "its number of documents differs from its document tree's")
            blocks = commit.blocks
            self._strand(documents.spans, f"text positions of {of}", self._span_piece, blocks, blocks, None)
            self._records(documents.records, documents.count, of)
        self._ranges(commit.dead, DEAD, f"which blocks of {of} are dead", load_dead, commit.blocks)
        self._labels(commit.labels, commit, of)
        for fingerprint, root in sorted(commit.layers.items()):
            layer = self._load(root, GistTree.KIND, f"gists of {fingerprint} in {of}; re-gist them", load_layer)
            if layer is not None:
                self._layer(layer, fingerprint, commit, of)

    def _ranges(self, name: str, kind: str, lost: str, load: Callable[[ObjectReader, str], Any], blocks: int) -> None:
        """An object with ranges of blocks, of a timeline of so many."""

        def check(reader: ObjectReader, each: str) -> None:
            _expect(all(stop <= blocks for _, stop in load(reader, each)), f"it has ranges behind its {blocks} blocks")

        if name:
            self._load(name, kind, lost, check)

    def _labels(self, name: str, commit: Commit, of: str) -> None:
        """A commit's labels, and those that they were made from."""
        while name:
            labels = self._load(name, LABELS, f"who may see what of {of}", load_labels)
            if labels is None:
                return
            held = [span for spans in labels.ranges.values() for span in spans]
            if any(stop > commit.blocks for _, stop in held) or any(at >= commit.document_count for at in labels.documents):
                self.wrong(name, LABELS, f"it labels more than {of} holds")
            name = labels.before

    def _layer(self, layer: GistTree, fingerprint: str, commit: Commit, of: str) -> None:
        if layer.spec.fingerprint != fingerprint or layer.blocks > commit.blocks:
            self.wrong(commit.layers[fingerprint], GistTree.KIND, "it does not fit its commit")
        self._ranges(layer.dead, DEAD, f"which blocks gists of {fingerprint} leave out", load_dead, commit.blocks)
        try:
            segments, dead = load_tokens(self._reader, commit).strand.segments, load_dead(self._reader, layer.dead)
        except (MegaContextError, KeyError, TypeError):
            return  # reported as damage of what cannot be read

        def piece(name: str, start: int, stop: int) -> None:
            arrays, metadata = self._reader.tensors(name, GISTS)
            for lod in range(1, inner_levels(self._segment) + 1):
                expected = (nodes(stop, lod) - nodes(start, lod), *layer.spec.shape)
                rows = arrays.get(f"lod{lod}", np.empty((0, *layer.spec.shape), np.float16))
                _expect(rows.shape == expected, f"level {lod} has {rows.shape}, not {expected}")
            _expect(metadata["gistnet"] == fingerprint, "it was made by another GistNet")
            _expect(metadata["dead"] == dead.mask_name(start, stop), "it was made when other blocks were dead")
            if stop - start == self._segment:
                tokens = get(self._reader, segments, start // self._segment)
                _expect(metadata["tokens"] == tokens, f"it belongs to tokens {metadata['tokens']}, not {tokens}")

        lost = f"gists of {fingerprint} in {of}; re-gist"
        self._strand(layer.strand, lost, piece, layer.blocks, layer.blocks, layer.spec.shape)

    def _strand(
        self, strand: Strand, lost: str, check: PieceCheck, whole: int, stop: int, shape: tuple[int, ...] | None
    ) -> None:
        """All pieces of a strand of `whole` complete blocks and rows up to `stop`."""
        size = self._segment
        if strand.segments.count != whole // size:
            self.wrong(strand.segments.root, KIND, f"{strand.segments.count} segments hold {whole} blocks; lost: {lost}")

        def leaf(name: str, index: int) -> None:
            self._piece(name, lost, check, index * size, (index + 1) * size)

        self._items(strand.segments, lost, leaf, shape)
        start = whole // size * size
        expected = -(-(stop - start) // PAGE_BLOCKS)
        if len(strand.pages) != expected:
            self.wrong(strand.segments.root or lost, KIND, f"{len(strand.pages)} pages, not {expected}; lost: {lost}")
            return
        for number, name in enumerate(strand.pages):
            first = start + number * PAGE_BLOCKS
            self._piece(name, lost, check, first, min(first + PAGE_BLOCKS, stop))

    def _piece(self, name: str, lost: str, check: PieceCheck, start: int, stop: int) -> None:
        what = f"{lost}, tokens {start * BLOCK} to {stop * BLOCK}"
        self._load(name, "object", what, lambda reader, each: check(each, start, stop))

    def _token_piece(self, name: str, start: int, stop: int) -> None:
        arrays, _ = self._reader.blocks(name)
        _rows(arrays, {"ids": (BLOCK,), "doc": (), "fill": ()}, stop - start)
        fill, doc = arrays["fill"], arrays["doc"].astype(np.int64)
        _expect(bool((fill <= BLOCK).all()), "a block's fill is above 32")
        _expect(not arrays["ids"][fill == 0].any(), "a blank block is not blank")
        _expect(bool((np.diff(doc) >= 0).all()), "its documents are out of order")

    def _span_piece(self, name: str, start: int, stop: int) -> None:
        _rows(self._reader.tensors(name, SPANS).arrays, {"chars": (), "lines": ()}, stop - start)

    def _items(
        self,
        items: MerkleList,
        lost: str,
        leaf: Callable[[str, int], None],
        shape: tuple[int, ...] | None,
    ) -> None:
        """All inner nodes of a list: their number of children and rows; then its items."""
        todo = [(items.root, items.depth, 0)] if items.count else []
        while todo:
            name, level, index = todo.pop()
            first, span = index * ARITY**level, ARITY ** (level - 1)
            within = min(items.count - first, ARITY**level)
            expected = {"children": -(-within // span), "gists": within // span if shape else 0}

            def load(reader: ObjectReader, each: str, expected: dict[str, int] = expected) -> Any:
                node = reader.tensors(each, KIND)
                _expect(len(node.arrays["children"]) == expected["children"], "its children are not complete")
                if shape:
                    _rows({"gists": node.arrays["gists"]}, {"gists": shape}, expected["gists"])
                return node

            node = self._load(name, KIND, lost, load)
            for slot in range(expected["children"] if node is not None else 0):
                below = index * ARITY + slot
                if level == 1:
                    leaf(child(node, slot), below)
                else:
                    todo.append((child(node, slot), level - 1, below))

    def _records(self, records: Strand, count: int, of: str) -> None:
        lost = f"where blocks of {of} come from"
        rest = count - records.segments.count * PAGE_RECORDS
        if len(records.pages) != -(-rest // PAGE_RECORDS):
            self.wrong(records.segments.root or of, "document-tree", f"its pages do not hold {count} documents")

        def leaf(name: str, index: int) -> None:
            size = min(PAGE_RECORDS, count - index * PAGE_RECORDS)

            def load(reader: ObjectReader, each: str) -> None:
                page = load_page(reader, each)
                _expect(len(page) == size, f"it has {len(page)} documents, not {size}")
                for record in page:
                    if record.original:
                        self.original(record.original, record.source)

            self._load(name, "documents", lost, load)

        self._items(records.segments, lost, leaf, None)
        for number, name in enumerate(records.pages):
            leaf(name, records.segments.count + number)


def _original(reader: ObjectReader, name: str) -> None:
    # What is archived is looked at there.
    with suppress(DetailPruned):
        reader.store.get(name)


def _rows(arrays: dict[str, Array], shapes: dict[str, tuple[int, ...]], count: int) -> None:
    for name, shape in shapes.items():
        _expect(arrays[name].shape == (count, *shape), f"{name} has shape {arrays[name].shape}, not {(count, *shape)}")


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        raise ValueError(otherwise)
