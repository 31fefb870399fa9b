"""Which documents a search is about: filters over their records, as an `allowed` of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megacontext.index.bm25 import I64
from megacontext.index.disposable import Bool, Keep
from megacontext.index.source_patterns import fits
from megacontext.storage.documents import DocumentRecord
from megacontext.storage.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Documents whose source fits the pattern `source` (see `source_patterns`: a path, the end of one, a folder, or with `*`,
    `?` and `[…]`), that carry all `tags`, and were added at `since` or later and before `until` (seconds since 1970)."""

    source: str | None = None
    tags: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None

    def __bool__(self) -> bool:
        return self != Filters()

    def fits(self, record: DocumentRecord) -> bool:
        """Whether a document is meant."""
        return (
            (self.source is None or fits(record.source, self.source))
            and set(self.tags) <= set(record.tags)
            and (self.since is None or record.ingested_at >= self.since)
            and (self.until is None or record.ingested_at < self.until)
        )

    def allowed(self, snapshot: Snapshot) -> Keep:
        """Which blocks of a snapshot lie in live documents that fit. Reads the records of all documents."""
        spans = [record.span for record in snapshot.documents.live() if self.fits(record)]
        starts, stops = np.array(sorted(spans), np.int64).reshape(-1, 2).T

        def keep(blocks: I64) -> Bool:
            at = np.searchsorted(starts, blocks, side="right") - 1
            inside: Bool = (at >= 0) & (blocks < np.append(stops, 0)[at])
            return inside

        return keep


def both(keeps: Sequence[Keep | None]) -> Keep | None:
    """What all of these let pass; None stands for everything."""
    given = [keep for keep in keeps if keep is not None]
    if not given:
        return None
    return lambda blocks: np.all([keep(blocks) for keep in given], axis=0)
