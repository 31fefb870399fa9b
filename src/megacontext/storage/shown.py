"""The documents of a snapshot as they are now and for this reader: later labels and tags applied, denied ones left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from megacontext.errors import AccessDenied
from megacontext.storage.documents import DocumentRecord, Documents
from megacontext.storage.guard import Guard
from megacontext.storage.labels import Labels
from megacontext.storage.objects import ObjectReader
from megacontext.storage.segment import Strand


class ShownDocuments(Documents):
    """`Documents` behind a guard (None: nothing is denied). Ordinals and the length count what is denied, too."""

    def __init__(
        self,
        reader: ObjectReader,
        records: Strand,
        newest: tuple[DocumentRecord, ...],
        labels: Labels,
        guard: Guard | None,
    ) -> None:
        super().__init__(reader, records, newest)
        self._labels, self._guard = labels, guard

    def __iter__(self) -> Iterator[DocumentRecord]:
        for record in super().__iter__():
            if (shown := self.shown(record)) is not None:
                yield shown

    def __getitem__(self, ordinal: int) -> DocumentRecord:
        """The record with this ordinal; raises UnknownReference if there is none, AccessDenied if it is denied."""
        shown = self.shown(super().__getitem__(ordinal))
        if shown is None:
            raise AccessDenied(f"document {ordinal} is denied to this reader; open the memory without deny to see it")
        return shown

    def live(self) -> Iterator[DocumentRecord]:
        """See `Documents.live`. A source whose last record is denied has none before it that would be shown instead."""
        last = {record.source: record for record in super().__iter__()}
        for record in sorted(last.values(), key=lambda record: record.ordinal):
            if not record.removed and (shown := self.shown(record)) is not None:
                yield shown

    def last_of(self, sources: Iterable[str]) -> dict[str, DocumentRecord]:
        """The last record of each of these sources that has one and is not denied. Looks from the newest backwards until all
        are found."""
        missing, found = set(sources), {}
        for ordinal in range(len(self) - 1, -1, -1):
            if not missing:
                break
            record = super().__getitem__(ordinal)
            if record.source in missing:
                missing.discard(record.source)
                if (shown := self.shown(record)) is not None:
                    found[record.source] = shown
        return found

    def shown(self, record: DocumentRecord) -> DocumentRecord | None:
        """A record as stored, as this reader sees it; None if it is denied."""
        current = self._labels.current(record)
        if self._guard is None:
            return current
        replaced = self._labels.current(super().__getitem__(record.replaces)) if 0 <= record.replaces < len(self) else None
        return None if self._guard.hides(current, replaced) else self._guard.shown(current)
