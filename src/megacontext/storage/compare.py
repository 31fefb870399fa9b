"""Comparing the documents of two states of a memory, top-down over the Merkle lists of their records.

Records are only appended, so two states share the pages from before they parted, and equal pages are skipped without
being read: the cost is that of the difference, whatever the memory holds. What a source was before they parted is found
from the first record after it, which names the one that it replaces. Only a source that came back after it had been
removed (or one of format 1, which knew no replacing) is looked for from there backwards, page by page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.storage.commit import Commit, load_documents
from megacontext.storage.documents import PAGE_RECORDS, DocumentRecord, load_page, load_record
from megacontext.storage.merkle import differing, get
from megacontext.storage.objects import ObjectReader
from megacontext.storage.segment import Strand
from megacontext.storage.snapshot import Snapshot
from megacontext.storage.tensors import U32


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of a source between two states: its last record in each, a tombstone where it had been removed, None
    where it never was."""

    source: str
    before: DocumentRecord | None
    after: DocumentRecord | None

    @property
    def live_before(self) -> DocumentRecord | None:
        """The document that was there before."""
        return live(self.before)

    @property
    def live_after(self) -> DocumentRecord | None:
        """The document that is there after."""
        return live(self.after)


def live(record: DocumentRecord | None) -> DocumentRecord | None:
    """The document of a source with this last record, if there is one."""
    return None if record is None or record.removed else record


def same_content(left: DocumentRecord, right: DocumentRecord) -> bool:
    """Whether two documents hold the same text, as far as their records tell: conversations have no hash of their text,
    and are told apart by their length."""
    return (left.text_hash, left.tokens) == (right.text_hash, right.tokens)


class RecordPages:
    """The records of one state, page by page; a page is read when it is asked for."""

    def __init__(self, reader: ObjectReader, strand: Strand, newest: Sequence[DocumentRecord] | None = None) -> None:
        """The records of a stored `strand`; `newest`, where given, are those behind its sealed pages instead."""
        self._reader, self._sealed = reader, strand.segments
        self._tail: Sequence[str | Sequence[DocumentRecord]] = strand.pages
        if newest is not None:
            self._tail = [newest[at : at + PAGE_RECORDS] for at in range(0, len(newest), PAGE_RECORDS)]

    @classmethod
    def of_commit(cls, reader: ObjectReader, commit: Commit) -> RecordPages:
        """Those of a commit."""
        return cls(reader, load_documents(reader, commit).records)

    @classmethod
    def of_snapshot(cls, reader: ObjectReader, snapshot: Snapshot) -> RecordPages:
        """Those of a snapshot, with what its journal adds."""
        strand = load_documents(reader, snapshot.commit).records
        documents = snapshot.documents
        first = strand.segments.count * PAGE_RECORDS
        return cls(reader, strand, [documents[ordinal] for ordinal in range(first, len(documents))])

    def __len__(self) -> int:
        return self._sealed.count + len(self._tail)

    def page(self, number: int) -> Sequence[DocumentRecord]:
        """The records of a page."""
        page = self._name(number)
        return load_page(self._reader, page) if isinstance(page, str) else page

    def record(self, ordinal: int) -> DocumentRecord:
        """The record with this ordinal."""
        number, slot = divmod(ordinal, PAGE_RECORDS)
        page = self._name(number)
        return load_record(self._reader, page, slot) if isinstance(page, str) else page[slot]

    def shared_with(self, other: RecordPages) -> int:
        """How many first pages both have in common."""
        at = sealed = min(self._sealed.count, other._sealed.count)
        if self._sealed != other._sealed:
            at = min(next(differing(self._reader, self._sealed, other._sealed), sealed), sealed)
        if at < sealed:
            return at
        while at < min(len(self), len(other)) and self._equal(at, other):
            at += 1
        return at

    def _equal(self, number: int, other: RecordPages) -> bool:
        left, right = self._name(number), other._name(number)
        if isinstance(left, str) and isinstance(right, str):
            return left == right
        return list(self.page(number)) == list(other.page(number))

    def _name(self, number: int) -> str | Sequence[DocumentRecord]:
        if number < self._sealed.count:
            return get(self._reader, self._sealed, number)
        return self._tail[number - self._sealed.count]


def changes(
    left: RecordPages, right: RecordPages, same: Callable[[DocumentRecord, DocumentRecord], bool] = same_content
) -> list[Change]:
    """The sources whose documents differ between two states, by name. `same` says of two documents, in that order, whether
    their content is equal."""
    shared = left.shared_with(right)
    old, new = _Suffix(left, shared), _Suffix(right, shared)
    wanted = [new.first[source] for source in new.last.keys() - old.last.keys()]
    wanted += [old.first[source] for source in old.last.keys() - new.last.keys()]
    before = _before(left, shared, wanted)
    found = []
    for source in sorted(old.last.keys() | new.last.keys()):
        a, b = old.last.get(source, before.get(source)), new.last.get(source, before.get(source))
        x, y = live(a), live(b)
        if not (same(x, y) if x and y else x is y):
            found.append(Change(source=source, before=a, after=b))
    return found


def commit_changes(reader: ObjectReader, before: Commit | None, after: Commit) -> list[Change]:
    """What a commit changed against another one; None is a memory without documents. Reads records only."""
    if before and before.documents == after.documents:
        return []
    old = RecordPages.of_commit(reader, before) if before else RecordPages(reader, Strand())
    return changes(old, RecordPages.of_commit(reader, after))


def snapshot_changes(reader: ObjectReader, left: Snapshot, right: Snapshot) -> list[Change]:
    """The sources whose documents differ between two snapshots. Conversations are compared by their tokens."""

    def same(a: DocumentRecord, b: DocumentRecord) -> bool:
        if not same_content(a, b):
            return False
        return a.text_hash != "" or np.array_equal(document_tokens(left, a), document_tokens(right, b))

    return changes(RecordPages.of_snapshot(reader, left), RecordPages.of_snapshot(reader, right), same)


def shown_changes(left: Snapshot | None, right: Snapshot) -> list[Change]:
    """The same for a reader that is denied something, by what it may see; None is a memory without documents. Reads the
    records of both."""
    old = {record.source: record for record in left.documents.live()} if left else {}
    new = {record.source: record for record in right.documents.live()}
    found = []
    for source in sorted(old.keys() | new.keys()):
        a, b = old.get(source), new.get(source)
        if a and b and left and _same_shown(left, a, right, b):
            continue
        found.append(Change(source=source, before=a, after=b))
    return found


def _same_shown(left: Snapshot, a: DocumentRecord, right: Snapshot, b: DocumentRecord) -> bool:
    if a.text_hash and b.text_hash:
        return a.text_hash == b.text_hash
    mine, theirs = left.timeline().present(*a.span), right.timeline().present(*b.span)
    same = np.array_equal(mine - a.start_block, theirs - b.start_block)
    same = same and np.array_equal(left.tokens_at(mine), right.tokens_at(theirs))
    return same and (not a.open or np.array_equal(left.open_ids, right.open_ids))


def document_tokens(snapshot: Snapshot, record: DocumentRecord) -> U32:
    """The real tokens of a live document of a snapshot, as far as its reader may see them, uint32 [tokens]."""
    blocks = snapshot.timeline().present(*record.span)
    real = np.arange(BLOCK) < snapshot.fill_at(blocks)[:, None]
    tokens: U32 = np.concatenate([snapshot.tokens_at(blocks)[real], snapshot.open_ids if record.open else _NO_TOKENS])
    return tokens


def last_records(snapshot: Snapshot, sources: Iterable[str]) -> dict[str, DocumentRecord]:
    """The last record of each of these sources that has one; see `ShownDocuments.last_of`."""
    return snapshot.documents.last_of(sources)


_NO_TOKENS = np.empty(0, np.uint32)


class _Suffix:
    """The first and the last record of each source behind the shared pages."""

    def __init__(self, pages: RecordPages, shared: int) -> None:
        self.first: dict[str, DocumentRecord] = {}
        self.last: dict[str, DocumentRecord] = {}
        for record in (each for number in range(shared, len(pages)) for each in pages.page(number)):
            self.first.setdefault(record.source, record)
            self.last[record.source] = record


def _before(pages: RecordPages, shared: int, firsts: Iterable[DocumentRecord]) -> dict[str, DocumentRecord]:
    """The last records, in the shared pages, of the sources whose first records behind these are given."""
    found: dict[str, DocumentRecord] = {}
    missing: set[str] = set()
    for first in firsts:
        if 0 <= first.replaces < shared * PAGE_RECORDS:
            found[first.source] = pages.record(first.replaces)
        elif first.version > 1:
            missing.add(first.source)
    for record in _backwards(pages, shared) if missing else ():
        if record.source in missing:
            found[record.source] = record
            missing.discard(record.source)
            if not missing:
                break
    return found


def _backwards(pages: RecordPages, stop: int) -> Iterator[DocumentRecord]:
    for number in range(stop - 1, -1, -1):
        yield from reversed(pages.page(number))
