"""Which documents are to be erased, and how a record of one looks afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from megacontext.storage.commit import Commit, load_documents
from megacontext.storage.documents import PAGE_RECORDS, DocumentRecord, load_page
from megacontext.storage.merkle import iterate
from megacontext.storage.objects import ObjectReader

# The records of one page that are to be erased: (slot, record).
_Slots = tuple[tuple[int, DocumentRecord], ...]


@dataclass(frozen=True)
class Version:
    """One version of a document, however far it has got: a conversation has no hash of its text while it grows."""

    source: str
    version: int
    born: float

    @classmethod
    def of(cls, record: DocumentRecord) -> Version:
        """That of a record."""
        return cls(record.source, record.version, record.ingested_at)


@dataclass(frozen=True, kw_only=True)
class Doomed:
    """What is to be erased: `sources` with all their versions and their names; single `versions` of other sources, and
    wherever else these have the same `texts` (source and hash)."""

    sources: frozenset[str] = frozenset()
    versions: frozenset[Version] = frozenset()
    texts: frozenset[tuple[str, str]] = frozenset()

    def __contains__(self, record: DocumentRecord) -> bool:
        if record.source in self.sources:
            return True
        if record.removed:
            return False
        return Version.of(record) in self.versions or (record.source, record.text_hash) in self.texts

    def blank(self, record: DocumentRecord) -> DocumentRecord:
        """What is left of a record: a tombstone in its place, without a name where that goes as well."""
        kept = DocumentRecord(
            ordinal=record.ordinal,
            source="",
            start_block=record.start_block,
            blocks=record.blocks,
            ingested_at=0.0,
            removed=True,
        )
        if record.source in self.sources:
            return kept
        return replace(kept, source=record.source, version=record.version, replaces=record.replaces)


class Records:
    """The records of commits, page by page; each page is looked through once, however many commits share it."""

    def __init__(self, reader: ObjectReader, doomed: Doomed) -> None:
        self._reader, self._doomed = reader, doomed
        self._pages: dict[str, _Slots] = {}

    def doomed(self, commit: Commit) -> list[DocumentRecord]:
        """The records of a commit that are to be erased, by ordinal."""
        found = []
        for number, page in enumerate(page_names(self._reader, commit)):
            if page not in self._pages:
                records = enumerate(load_page(self._reader, page))
                self._pages[page] = tuple((slot, record) for slot, record in records if record in self._doomed)
            found += [replace(record, ordinal=number * PAGE_RECORDS + slot) for slot, record in self._pages[page]]
        return found


def page_names(reader: ObjectReader, commit: Commit) -> Iterator[str]:
    """The pages of a commit's records, in order."""
    records = load_documents(reader, commit).records
    yield from iterate(reader, records.segments)
    yield from records.pages


def completed(doomed: Doomed, records: Iterable[DocumentRecord]) -> Doomed:
    """With the names of sources of which no version is left among all `records`: they go as well."""
    touched: set[str] = set()
    kept: set[str] = set()
    for record in records:
        if not record.removed:
            (touched if record in doomed else kept).add(record.source)
    return replace(doomed, sources=doomed.sources | (touched - kept))
