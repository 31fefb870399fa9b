"""Ingest: texts become documents of a memory, with the gists of every level, batched and resumable.

What is acknowledged (by a `sync` after every batch) survives a crash: run again, it goes on where it was, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from megacontext.engine.ahead import ahead
from megacontext.engine.events import (
    BlocksIngested,
    Committed,
    DocumentFinished,
    DocumentSkipped,
    DocumentStarted,
    DocumentUnchanged,
    Listener,
    nobody,
)
from megacontext.engine.gist_builder import F16, U8, U32, GistBuilder, NoGists
from megacontext.engine.repack import repack_if_due
from megacontext.engine.same_blocks import same_blocks
from megacontext.engine.sources import Skipped, Source
from megacontext.engine.text_blocks import TextBlocks, TextCutter
from megacontext.errors import ConfigError, IngestError
from megacontext.models.base_lm import BaseLM
from megacontext.models.gistnet import GistEncoder
from megacontext.storage import BranchWriter, DocumentRecord, Repository, Snapshot
from megacontext.storage.erased import door
from megacontext.storage.hashing import digest
from megacontext.storage.labels import checked_names


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Blocks that are encoded, written and acknowledged together (`batch_blocks`; work that a crash can lose), and after how
    many a commit is made in between (`commit_blocks`; bounds the journal and the memory used). With `repack` dead blocks are
    left out at the end where they are most of what there is (see `repack.due`)."""

    batch_blocks: int = 512
    commit_blocks: int = 32_768
    repack: bool = True

    def __post_init__(self) -> None:
        if min(self.batch_blocks, self.commit_blocks) < 1:
            raise ConfigError("batch_blocks and commit_blocks must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of the sources, by URI. Everything in it is acknowledged.

    `added` are new, `updated` new versions of sources that were there (the old ones are dead: only older commits show them);
    `tokens` (real ones) and `blocks` are theirs, of which `reused` blocks kept the gists of the version before. `repacked`
    dead blocks were left out at the end. `commit` is where the branch is now. `recognised` pairs paths that were given with the
    names that they have in the memory, where these are not the ones that they would get today.
    """

    added: tuple[str, ...]
    updated: tuple[str, ...]
    unchanged: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    tokens: int
    blocks: int
    reused: int
    commit: str
    seconds: float
    repacked: int = 0
    recognised: tuple[tuple[str, str], ...] = ()

    @property
    def documents(self) -> int:
        """Documents added, new versions included."""
        return len(self.added) + len(self.updated)


def ingest(
    repository: Repository,
    base: BaseLM,
    encoder: GistEncoder | None,
    sources: Iterable[Source | Skipped],
    *,
    branch: str | None = None,
    message: str = "",
    author: str = "",
    config: IngestConfig | None = None,
    allow_erased: bool = False,
    listener: Listener = nobody,
) -> Receipt:
    """Adds sources to a branch (default: the current one) and commits. Without an encoder the memory gets no gists. What was
    erased from the memory is skipped, unless `allow_erased`: then it may come in again from now on.

    Raises BranchLocked while somebody else writes the branch, and StorageFull with everything acknowledged kept.
    """
    builder = GistBuilder(base, encoder) if encoder is not None else None
    with repository.writer(branch, layer=builder.spec if builder else None) as writer:
        refuses = door(repository.root, allow=allow_erased, author=author)
        run = Ingest(writer, TextCutter(base.tokenizer), builder, config=config, refuses=refuses, listener=listener)
        receipt = run(sources, message=message, author=author)
    done = repack_if_due(repository, base, encoder, branch=branch, author=author) if run.config.repack else None
    return receipt if done is None else replace(receipt, commit=done.commit, repacked=done.freed)


class _Document(NamedTuple):
    """A source on its way in."""

    source: Source
    text_hash: str
    size: int
    version: int


class _Piece(NamedTuple):
    """Blocks of a document; `resumed` blocks of it were there before its first piece."""

    document: _Document
    blocks: TextBlocks
    first: bool
    last: bool
    resumed: int


class Ingest:
    """One run of ingest into an open writer, whose layer has to be the builder's. Call it once."""

    def __init__(
        self,
        writer: BranchWriter,
        cutter: TextCutter,
        builder: GistBuilder | None,
        *,
        config: IngestConfig | None = None,
        refuses: Callable[[str, str], str] = lambda source, text_hash: "",
        listener: Listener = nobody,
    ) -> None:
        self._writer, self._cutter, self._builder = writer, cutter, builder
        self.config = config or IngestConfig()
        self._refuses, self._tell = refuses, listener
        snapshot = writer.snapshot()
        self._timeline = snapshot.timeline()
        self._last = {record.source: record for record in snapshot.documents}
        self._known = {uri: (last.version, self._live_hash(last)) for uri, last in self._last.items()}
        self._committed = snapshot.commit.blocks
        # Only what an earlier process left can be resumed, and only by the first document that is written.
        self._left_over = writer.document
        self._added: list[str] = []
        self._updated: list[str] = []
        self._unchanged: list[str] = []
        self._skipped: list[Skipped] = []
        self._tokens = self._blocks = self._reused = 0
        self._moment: float | None = None
        # Added and updated documents at the last commit; below zero for those that an earlier run left without one.
        self._told = _uncommitted(snapshot)

    def __call__(
        self, sources: Iterable[Source | Skipped], *, message: str = "", author: str = "", moment: float | None = None
    ) -> Receipt:
        """Takes in all sources and commits, as if at `moment` (seconds since 1970; None: now)."""
        started, self._moment = time.perf_counter(), moment
        for batch in self._batches(sources):
            self._write(batch, message, author)
        commit = self._commit(message, author)
        return Receipt(
            added=tuple(self._added),
            updated=tuple(self._updated),
            unchanged=tuple(self._unchanged),
            skipped=tuple(self._skipped),
            tokens=self._tokens,
            blocks=self._blocks,
            reused=self._reused,
            commit=commit,
            seconds=time.perf_counter() - started,
        )

    def _batches(self, sources: Iterable[Source | Skipped]) -> Iterator[list[_Piece]]:
        """Pieces of documents, together about `batch_blocks` blocks: small documents share a batch, large ones have many."""
        batch: list[_Piece] = []
        room = self.config.batch_blocks
        cut = self._cutter.cut
        for document, parts in ahead(self._documents(sources), lambda each: cut(each.source.text), lambda each: each.size):
            for piece in self._pieces(document, parts):
                batch.append(piece)
                room -= len(piece.blocks.ids)
                if room <= 0:
                    yield batch
                    batch, room = [], self.config.batch_blocks
        if batch:
            yield batch

    def _documents(self, sources: Iterable[Source | Skipped]) -> Iterator[_Document]:
        """The documents that are due; what is left out is told."""
        for source in map(_checked, sources):
            if isinstance(source, Skipped):
                self._skipped.append(source)
                self._tell(DocumentSkipped(uri=source.uri, reason=source.reason))
            elif (document := self._accept(source)) is not None:
                yield document

    def _accept(self, source: Source) -> _Document | None:
        """The document that a source becomes; None if it is there already."""
        data = source.text.encode("utf-8")
        text_hash = digest(data)
        version, known_hash = self._known.get(source.uri, (0, ""))
        if known_hash == text_hash:
            self._unchanged.append(source.uri)
            self._tell(DocumentUnchanged(uri=source.uri, size=len(data)))
            return None
        if reason := self._refuses(source.uri, text_hash):
            skipped = Skipped(uri=source.uri, reason=f"{reason}; --allow-erased lets it in again")
            self._skipped.append(skipped)
            self._tell(DocumentSkipped(uri=skipped.uri, reason=skipped.reason))
            return None
        number = source.version or version + 1
        self._known[source.uri] = number, text_hash
        return _Document(source, text_hash, len(data), number)

    def _live_hash(self, record: DocumentRecord) -> str:
        """The hash of a record's text, '' where it is not there any more."""
        return "" if record.removed or self._timeline.kills(*record.span) else record.text_hash

    def _labels(self, source: Source) -> tuple[str, ...]:
        """The labels that a document begins with: those given, and those of the source when it was taken out."""
        last = self._last.get(source.uri)
        return checked_names((*source.labels, *(last.labels if last is not None and last.removed else ())))

    def _live(self, uri: str) -> DocumentRecord | None:
        """The finished version of a source that is there now."""
        last = self._last.get(uri)
        return last if last is not None and self._live_hash(last) else None

    def _pieces(self, document: _Document, parts: Iterator[TextBlocks]) -> Iterator[_Piece]:
        """What is still to be written of a document that is cut into `parts`, in pieces of at most `batch_blocks`."""
        left, self._left_over = self._left_over, None
        begins = (document.source.uri, document.text_hash, self._labels(document.source), False)
        there = left is not None and (left.source, left.text_hash, left.labels, left.open) == begins
        resumed = left.blocks if left and there else 0
        at, first = 0, True
        for blocks in parts:
            ends = blocks.chars_done == len(document.source.text)
            count = len(blocks.ids)
            start = min(max(resumed - at, 0), count)
            at += count
            # A last piece is due even where all its blocks are there, to end the document.
            for low in range(start, max(count, start + 1), self.config.batch_blocks):
                high = min(low + self.config.batch_blocks, count)
                if low < high or ends:
                    yield _Piece(document, blocks.part(low, high), first, ends and high == count, resumed)
                    first = False

    def _write(self, batch: list[_Piece], message: str, author: str) -> None:
        """Encodes the blocks of a batch together, writes them document by document, and acknowledges all."""
        level_one = self._encode(batch, *_concatenated(batch)) if self._builder else None
        at = 0
        for piece in batch:
            if piece.first:
                self._begin(piece)
            count = len(piece.blocks.ids)
            self._append(piece, None if level_one is None else level_one[at : at + count])
            at += count
            if piece.last:
                self._end(piece)
                self._commit_if_due(message, author)
        self._writer.sync()

    def _encode(self, batch: list[_Piece], ids: U32, fill: U8) -> F16:
        """LOD1 gists [n, g, d] of a batch; blocks that the version before had as well keep the gists that they had."""
        assert self._builder is not None
        befores = [self._live(piece.document.source.uri) for piece in batch]
        counts = [len(piece.blocks.ids) for piece in batch]
        made = np.zeros((len(ids), *self._builder.spec.shape), np.float16)
        there = np.zeros(len(ids), np.bool_)
        at = 0
        for before, count in zip(befores, counts, strict=True):
            rows = slice(at, at + count)
            at += count
            if before is not None and before.blocks and count:
                span = before.span
                old_ids, old_fill = self._snapshot_blocks(*span)
                found = same_blocks(ids[rows], fill[rows], old_ids, old_fill)
                there[rows] = found >= 0
                known = self._writer.written_layer().gists_at(1, span[0] + found[found >= 0])
                made[rows][found >= 0] = known
        self._reused += int(there.sum())
        if not there.all():
            made[~there] = self._builder.encode_blocks(ids[~there], fill[~there])
        return made

    def _snapshot_blocks(self, start: int, stop: int) -> tuple[U32, U8]:
        return self._writer.snapshot().shown(start, stop)

    def _begin(self, piece: _Piece) -> None:
        document, uri = piece.document, piece.document.source.uri
        resumed = self._writer.begin_document(
            source=uri,
            text_hash=document.text_hash,
            media_type=document.source.media_type,
            version=document.version,
            tags=document.source.tags,
            ingested_at=document.source.ingested_at,
            labels=self._labels(document.source),
            chars=len(document.source.text),
        )
        if resumed.blocks != piece.resumed:
            raise IngestError(
                f"{uri} has {resumed.blocks} blocks, not the {piece.resumed} that were there before: run it again"
            )
        chars = len(document.source.text)
        self._tell(DocumentStarted(uri=uri, version=document.version, chars=chars, resumed=resumed.blocks))

    def _append(self, piece: _Piece, level_one: F16 | None) -> None:
        blocks, writer = piece.blocks, self._writer
        if not len(blocks.ids):
            return
        gists = None
        if self._builder is not None and level_one is not None:
            stored = writer.written_layer() if writer.blocks else NoGists()
            gists = self._builder.extend(stored, blocks.ids, blocks.fill, timeline=self._timeline, level_one=level_one)
        writer.append_blocks(blocks.ids, blocks.fill, gists=gists, chars=blocks.chars, lines=blocks.lines)
        self._tell(
            BlocksIngested(
                uri=piece.document.source.uri,
                blocks=len(blocks.ids),
                tokens=int(blocks.fill.sum()),
                chars_done=blocks.chars_done,
                chars=len(piece.document.source.text),
            )
        )

    def _end(self, piece: _Piece) -> None:
        document, text = piece.document, piece.document.source.text
        original = None if piece.blocks.exact else text.encode("utf-8")
        before = self._live(document.source.uri)
        patches = None
        if before is not None:
            self._timeline = self._timeline.extend(self._writer.blocks).kill(*before.span)
            if self._builder is not None:
                patches = self._builder.remake(self._writer.written_layer(), self._timeline, [before.span])
        record = self._writer.end_document(
            chars=len(text), lines=_lines(text), original=original, replaces=before, patches=patches
        )
        self._last[record.source] = record
        self._tokens += record.tokens
        self._blocks += record.blocks
        (self._added if record.version == 1 else self._updated).append(record.source)
        self._tell(
            DocumentFinished(
                uri=record.source, version=record.version, blocks=record.blocks, tokens=record.tokens, size=document.size
            )
        )

    def _commit_if_due(self, message: str, author: str) -> None:
        if self._writer.blocks - self._committed >= self.config.commit_blocks:
            self._commit(message, author)

    def _commit(self, message: str, author: str) -> str:
        commit = self._writer.commit(message or self._summary(), author, self._moment)
        self._committed, self._told = self._writer.blocks, (len(self._added), len(self._updated))
        self._tell(Committed(commit=commit, blocks=self._committed))
        return commit

    def _summary(self) -> str:
        added, updated = len(self._added) - self._told[0], len(self._updated) - self._told[1]
        parts = [f"{added} document{'s' * (added != 1)}"] if added or not updated else []
        if updated:
            parts.append(f"new versions of {updated}")
        return f"Add {' and '.join(parts)}"


def _checked(source: Source | Skipped) -> Source | Skipped:
    """The source if its text can be stored; strings may come from anywhere."""
    if isinstance(source, Source) and not source.text:
        return Skipped(uri=source.uri, reason="empty")
    if isinstance(source, Source):
        try:
            source.text.encode("utf-8")
        except UnicodeEncodeError as error:
            return Skipped(uri=source.uri, reason=f"not text that UTF-8 can hold (character {error.start})")
    return source


def _uncommitted(snapshot: Snapshot) -> tuple[int, int]:
    """Minus the numbers of new documents and of new versions behind the snapshot's commit."""
    versions = [snapshot.documents[at].version for at in range(snapshot.commit.document_count, len(snapshot.documents))]
    added = versions.count(1)
    return -added, added - len(versions)


def _concatenated(batch: list[_Piece]) -> tuple[U32, U8]:
    return np.concatenate([piece.blocks.ids for piece in batch]), np.concatenate([piece.blocks.fill for piece in batch])


def _lines(text: str) -> int:
    return text.count("\n") + (not text.endswith("\n"))
