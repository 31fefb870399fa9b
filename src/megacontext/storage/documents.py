"""Documents: where every block came from. Records lie in pages of 32 in a Merkle list, as canonical JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from megacontext.errors import UnknownReference
from megacontext.storage.hashing import Json, canonical, natural
from megacontext.storage.merkle import get
from megacontext.storage.objects import ObjectReader
from megacontext.storage.segment import Strand

RECORDS = "documents"
PAGE_RECORDS = 32


@dataclass(frozen=True, kw_only=True)
class DocumentRecord:
    """One document of a timeline, or one version of it.

    It covers `blocks` blocks from `start_block` and holds `tokens` real tokens; what fills up its last block
    is not counted. `chars` and `lines` are the length of its text. `open`: it is a conversation that still
    grows; then `tokens` may reach into an unfinished block behind `blocks`. `original` names the object with
    the source's bytes where decoding the tokens does not give them back, else ''.

    A source is what its last record says. `replaces` is the ordinal of the record whose blocks this one made dead (-1:
    of none); `removed` marks a tombstone, which has no blocks: the source was taken out.
    """

    ordinal: int
    source: str
    version: int = 1
    start_block: int = 0
    blocks: int = 0
    tokens: int = 0
    chars: int = 0
    lines: int = 0
    text_hash: str = ""
    media_type: str = "text/plain"
    ingested_at: float = 0.0
    tags: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    original: str = ""
    open: bool = False
    removed: bool = False
    replaces: int = -1

    @property
    def span(self) -> tuple[int, int]:
        """Its blocks of the timeline, start and stop."""
        return self.start_block, self.start_block + self.blocks

    def to_json(self) -> Json:
        """The record as a JSON object."""
        # Not `asdict`: it copies every value on its own and would take a quarter of the time of an ingest.
        return {**vars(self), "tags": list(self.tags), "labels": list(self.labels)}

    @classmethod
    def from_json(cls, value: Json) -> DocumentRecord:
        """The inverse of `to_json`; raises TypeError or KeyError for another form."""
        # Format 1 knew no dead documents.
        value = {"removed": False, "replaces": -1, **value}
        known = {name: value[name] for name in cls.__dataclass_fields__}
        known["tags"], known["labels"] = tuple(value["tags"]), tuple(value["labels"])
        return cls(**known)


def page_object(records: list[DocumentRecord]) -> bytes:
    """A page of at most 32 records."""
    return canonical({"kind": RECORDS, "records": [record.to_json() for record in records]})


def load_page(reader: ObjectReader, name: str) -> list[DocumentRecord]:
    """The records of a page."""
    return [DocumentRecord.from_json(value) for value in reader.json(name, RECORDS)["records"]]


def load_record(reader: ObjectReader, name: str, slot: int) -> DocumentRecord:
    """One record of a page."""
    return DocumentRecord.from_json(reader.json(name, RECORDS)["records"][slot])


@dataclass(frozen=True, kw_only=True)
class DocumentTree:
    """The root object of a commit's provenance: `count` records, and where in its text each block starts."""

    count: int = 0
    records: Strand = field(default_factory=Strand)
    spans: Strand = field(default_factory=Strand)

    KIND = "document-tree"

    def to_bytes(self) -> bytes:
        """The object's content."""
        return canonical(
            {
                "kind": self.KIND,
                "count": self.count,
                "records": self.records.to_json(),
                "spans": self.spans.to_json(),
            }
        )

    @classmethod
    def from_json(cls, value: Json) -> DocumentTree:
        """The inverse of `to_bytes`, after parsing."""
        return cls(
            count=natural(value["count"]),
            records=Strand.from_json(value["records"]),
            spans=Strand.from_json(value["spans"]),
        )


class Documents:
    """The documents of a snapshot, in order: sealed pages, then the newest records in memory."""

    def __init__(self, reader: ObjectReader, records: Strand, newest: tuple[DocumentRecord, ...]) -> None:
        self._reader = reader
        self._pages = records.segments
        self._sealed = records.segments.count * PAGE_RECORDS
        self._newest = newest

    def __len__(self) -> int:
        return self._sealed + len(self._newest)

    def __iter__(self) -> Iterator[DocumentRecord]:
        for number in range(self._pages.count):
            yield from load_page(self._reader, get(self._reader, self._pages, number))
        yield from self._newest

    def __getitem__(self, ordinal: int) -> DocumentRecord:
        """The record with this ordinal; raises UnknownReference if there is none."""
        if not 0 <= ordinal < len(self):
            raise UnknownReference(f"no document {ordinal}; there are {len(self)}")
        if ordinal >= self._sealed:
            return self._newest[ordinal - self._sealed]
        number, slot = divmod(ordinal, PAGE_RECORDS)
        return load_record(self._reader, get(self._reader, self._pages, number), slot)

    def live(self) -> Iterator[DocumentRecord]:
        """What there is: the last record of each source, by ordinal, without those that were removed. Reads every page."""
        last = {record.source: record for record in self}
        yield from sorted((each for each in last.values() if not each.removed), key=lambda record: record.ordinal)

    def find(self, source: str) -> list[DocumentRecord]:
        """All versions of a source, oldest first. Reads every page: for more than a few, use an index."""
        return [record for record in self if record.source == source]
