"""Full-text search: which blocks share rare tokens with a query, ranked by BM25.

What `FullTextIndex.search` finds is defined on the snapshot alone, so that the same memory gives the same answer
whatever else an index file holds, and without one:

* The *document frequency* df of a term is the number of complete blocks of the snapshot that hold it, those of dead
  documents included (a frequency is a statistic, and counting them anew at each removal would not be).
* The query keeps its rarest terms (by df, then by id; special tokens and what occurs nowhere left out): at most
  `max_terms`, and only as many as have `max_postings` occurrences together, but at least one.
* Candidates are the last `max_postings` sealed blocks before `before_block` that hold a kept term, and every such
  block of the tail. So the cost does not grow with the history. Dead ones are dropped.
* They are ranked by BM25 over the kept terms; of equal ones the newer comes first.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megacontext.errors import ConfigError
from megacontext.index.bm25 import I64, U32, Bm25Config, block_counts, inverse_frequency, scores
from megacontext.index.inverted import InvertedFile, SegmentRows, TermCounts
from megacontext.storage.snapshot import Snapshot

log = logging.getLogger(__name__)

FOLDER = "index"
FILE = "fulltext.sqlite"
# The layouts of this many timelines are kept: one for each branch that is searched in turn.
KEEP_LAYOUTS = 8
# SQLite's primary result codes for a file that is not what it should be.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT}

F32 = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FullTextConfig:
    """`max_terms` of a query are looked up, in at most `max_postings` blocks; `bm25` ranks those."""

    max_terms: int = 16
    max_postings: int = 1024
    bm25: Bm25Config = field(default_factory=Bm25Config)

    def __post_init__(self) -> None:
        if min(self.max_terms, self.max_postings) < 1:
            raise ConfigError("max_terms and max_postings must be at least 1")


class Hits(NamedTuple):
    """Blocks found, int64 [k], best first, and their scores, float32 [k] > 0 (higher is better)."""

    blocks: I64
    scores: F32


class _Layout(NamedTuple):
    """A timeline's segments in the index: where each starts in the file, and their frequencies."""

    rows: SegmentRows
    starts: I64  # first block of each segment
    counts: TermCounts


class FullTextIndex:
    """The index of a memory, shared by its branches. Safe to use from several threads and processes.

    A missing or damaged file is rebuilt as it is needed; where none can be written, the index is kept in this
    process's memory. Both are logged and never fatal.
    """

    def __init__(self, memory: Path | str, *, special_ids: Collection[int] = (), config: FullTextConfig | None = None) -> None:
        """`memory` is the memory's folder; `special_ids` are tokens that no query looks for."""
        self.path = Path(memory) / FOLDER / FILE
        self._config = config or FullTextConfig()
        self._special = np.array(sorted(special_ids), np.uint32)
        self._lock = threading.RLock()
        self._file: InvertedFile | None = None
        self._inode = 0
        self._in_memory = False
        self._layouts: OrderedDict[str, _Layout] = OrderedDict()

    def ensure(self, snapshot: Snapshot) -> None:
        """Indexes the sealed segments of a snapshot that are not indexed yet; `search` does so too."""
        self._using(lambda file: self._layout(file, snapshot))

    def search(self, snapshot: Snapshot, token_ids: ArrayLike, limit: int, before_block: int | None = None) -> Hits:
        """The at most `limit` best complete blocks of the snapshot for a query of `token_ids` [q].

        With `before_block`, only blocks before that one. Never a dead block, nor one of another branch.
        """
        terms = np.setdiff1d(np.asarray(token_ids, np.uint32), self._special)
        stop = snapshot.blocks if before_block is None else min(before_block, snapshot.blocks)
        if limit < 1 or stop <= 0 or not len(terms):
            return _NOTHING
        sealed = snapshot.sealed_blocks
        tail_ids = snapshot.tokens(sealed, snapshot.blocks)
        tail_fill = snapshot.fill(sealed, snapshot.blocks)

        def sealed_candidates(file: InvertedFile) -> tuple[U32, I64, I64]:
            layout = self._layout(file, snapshot)
            counts = layout.counts.of(terms) + block_counts(tail_ids, tail_fill, terms)
            kept = self._rarest(terms, counts)
            found = self._candidates(file, layout, terms[kept], min(stop, sealed))
            return terms[kept], counts[kept], found

        kept, counts, found = self._using(sealed_candidates)
        in_tail = sealed + np.flatnonzero(np.isin(tail_ids, kept).any(axis=1))
        blocks = np.concatenate((np.sort(found), in_tail[in_tail < stop]))
        blocks = blocks[~_dead(snapshot, blocks)]
        weights = inverse_frequency(snapshot.blocks, counts)
        ranked = scores(snapshot.tokens_at(blocks), snapshot.fill_at(blocks), kept, weights, self._config.bm25)
        # A hit in the filling is none: its score is 0.
        order = np.lexsort((-blocks, -ranked))[: min(limit, int(np.count_nonzero(ranked)))]
        return Hits(blocks[order], ranked[order].astype(np.float32))

    def delete(self) -> None:
        """Removes the file, and with it every trace of what was indexed; the next search starts a new one."""
        with self._lock:
            self.close()
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(FILE + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file; the next use opens it again."""
        with self._lock:
            self._layouts.clear()
            if self._file is not None:
                with suppress(sqlite3.Error):
                    self._file.close()
                self._file = None

    def _rarest(self, terms: U32, counts: I64) -> I64:
        """Which terms a query keeps: ascending indices."""
        order = np.lexsort((terms, counts))
        order = order[counts[order] > 0][: self._config.max_terms]
        within = int(np.searchsorted(np.cumsum(counts[order]), self._config.max_postings, side="right"))
        return np.sort(order[: max(within, 1)])

    def _candidates(self, file: InvertedFile, layout: _Layout, terms: U32, stop: int) -> I64:
        """The last sealed blocks before `stop` that hold any of the terms, at most `max_postings`, descending."""
        parts: list[I64] = [np.zeros(0, np.int64)]
        room = self._config.max_postings
        for first, last in reversed(_runs(layout.rows)):
            start = int(layout.starts[first])
            row = int(layout.rows.first_row[first])
            length = min(int(layout.starts[last] + layout.rows.blocks[last]), stop) - start
            if length <= 0 or not room or not len(terms):
                continue
            rows = file.newest(terms, row, row + length - 1, room)
            parts.append(rows - row + start)
            room -= len(rows)
        return np.concatenate(parts)

    def _layout(self, file: InvertedFile, snapshot: Snapshot) -> _Layout:
        key = snapshot.commit.tokens
        layout = self._layouts.get(key)
        if layout is None:
            names = snapshot.segments()
            size = snapshot.sealed_blocks // max(len(names), 1)
            rows = file.add(names, size, lambda start, stop: (snapshot.tokens(start, stop), snapshot.fill(start, stop)))
            if np.any(rows.blocks != size):
                raise sqlite3.DatabaseError("a segment was indexed with another length")
            layout = _Layout(rows, np.arange(len(names), dtype=np.int64) * size, file.counts(names))
            self._layouts[key] = layout
            if len(self._layouts) > KEEP_LAYOUTS:
                self._layouts.popitem(last=False)
        self._layouts.move_to_end(key)
        return layout

    def _using(self, work: Callable[[InvertedFile], T]) -> T:
        """Does `work` with the file, with a rebuilt one if it is damaged, or else with one in memory."""
        with self._lock:
            for last_try in (False, False, True):
                try:
                    return work(self._opened())
                except (sqlite3.Error, OSError) as error:
                    if last_try or self._in_memory:
                        raise
                    self._recover(error)
        raise AssertionError("the last try returns or raises")

    def _opened(self) -> InvertedFile:
        if self._file is None and self._in_memory:
            self._file = InvertedFile(None)
        elif self._file is None:
            self.path.parent.mkdir(exist_ok=True)
            self._inode = self._inode_now()
            self._file = InvertedFile(self.path)
            self._inode = self._inode_now()
        return self._file

    def _recover(self, error: sqlite3.Error | OSError) -> None:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        damaged = isinstance(error, sqlite3.Error) and code in _DAMAGED
        # Only the file that was found damaged is removed: another process may have replaced it already.
        seen, now = self._inode, self._inode_now()
        self.close()
        if damaged:
            log.warning("the index %s is damaged (%s) and is built again", self.path, error)
            with suppress(OSError):
                if seen == now:
                    self.delete()
                return
        log.warning("the index %s cannot be used (%s); it is kept in memory", self.path, error)
        self._in_memory = True

    def _inode_now(self) -> int:
        try:
            return self.path.stat().st_ino
        except OSError:
            return 0


_NOTHING = Hits(np.zeros(0, np.int64), np.zeros(0, np.float32))


def _runs(rows: SegmentRows) -> list[tuple[int, int]]:
    """Stretches (first, last) of segments that lie behind each other in the file as in the timeline."""
    if not len(rows.first_row):
        return []
    gaps = np.flatnonzero(rows.first_row[1:] != rows.first_row[:-1] + rows.blocks[:-1])
    return list(zip([0, *(gaps + 1).tolist()], [*gaps.tolist(), len(rows.first_row) - 1], strict=True))


def _dead(snapshot: Snapshot, blocks: I64) -> NDArray[np.bool_]:
    return snapshot.timeline().dead_mask(np.zeros(len(blocks), np.int8), blocks)
