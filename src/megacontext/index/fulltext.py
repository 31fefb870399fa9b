"""Full-text search: which blocks share rare tokens with a query, ranked by BM25.

What `FullTextIndex.search` finds is defined on the snapshot alone, so that the same memory gives the same answer
whatever else an index file holds, and without one:

* The *document frequency* df of a term is the number of complete, live blocks of the snapshot that hold it. For a
  reader who may not see all of them (`allowed`) it is the number of those that he may see, at most `max_postings` of
  the sealed ones and all of the tail: so nothing about the others can be told from what is found and how it ranks.
* The query keeps its rarest terms (by df, then by id; special tokens and what occurs nowhere left out): at most
  `max_terms`, and only as many as have `max_postings` occurrences together, but at least one.
* Candidates are the last `max_postings` sealed blocks before `before_block` that hold a kept term, are live and allowed,
  and every such block of the tail. So the cost does not grow with the history, but for dead and denied blocks passed over.
* They are ranked by BM25 over the kept terms; of equal ones the newer comes first.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megacontext.errors import ConfigError
from megacontext.index.bm25 import F64, I64, U32, Bm25Config, block_counts, inverse_frequency, scores
from megacontext.index.disposable import FOLDER, Bool, DisposableFile, Keep, Progress, silent
from megacontext.index.inverted import InvertedFile, SegmentRows, TermCounts
from megacontext.storage.snapshot import Snapshot

FILE = "fulltext.sqlite"
# The layouts of this many timelines are kept: one for each branch that is searched in turn.
KEEP_LAYOUTS = 8
# So many partly dead segments are remembered with what their dead blocks hold.
KEEP_DEAD = 1024

F32 = NDArray[np.float32]


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
        self._layouts: OrderedDict[str, _Layout] = OrderedDict()
        self._dead: tuple[tuple[str, tuple[tuple[int, int], ...]], TermCounts] | None = None
        self._dead_spans: OrderedDict[tuple[str, tuple[tuple[int, int], ...]], TermCounts] = OrderedDict()
        self._disposable = DisposableFile(self.path, InvertedFile, self._layouts.clear)

    def ensure(self, snapshot: Snapshot, progress: Progress = silent) -> None:
        """Indexes the sealed segments of a snapshot that are not indexed yet; `search` does so too."""
        self._disposable.using(lambda file: self._layout(file, snapshot, progress))

    def search(
        self,
        snapshot: Snapshot,
        token_ids: ArrayLike,
        limit: int,
        before_block: int | None = None,
        allowed: Keep | None = None,
    ) -> Hits:
        """The at most `limit` best complete blocks of the snapshot for a query of `token_ids` [q].

        With `before_block`, only blocks before that one; with `allowed` (blocks int64 [k] to bool [k]), only those that it
        lets pass. Never a dead block, nor one of another branch.
        """
        terms = np.setdiff1d(np.asarray(token_ids, np.uint32), self._special)
        stop = snapshot.blocks if before_block is None else min(before_block, snapshot.blocks)
        if limit < 1 or stop <= 0 or not len(terms):
            return NOTHING
        keep = visible(snapshot, allowed)
        sealed = snapshot.sealed_blocks
        tail = np.arange(sealed, snapshot.blocks, dtype=np.int64)
        tail = tail if keep is None else tail[keep(tail)]
        tail_ids, tail_fill = snapshot.tokens_at(tail), snapshot.fill_at(tail)

        def sealed_candidates(file: InvertedFile) -> tuple[U32, I64, I64]:
            layout = self._layout(file, snapshot)
            if allowed is None:
                counts = layout.counts.of(terms) - self._dead_counts(file, snapshot).of(terms)
            else:
                counts = np.array([len(self._candidates(file, layout, terms[[at]], sealed, keep)) for at in range(len(terms))])
            counts = counts + block_counts(tail_ids, tail_fill, terms)
            kept = self._rarest(terms, counts)
            found = self._candidates(file, layout, terms[kept], min(stop, sealed), keep)
            return terms[kept], counts[kept], found

        kept, counts, found = self._disposable.using(sealed_candidates)
        # Whatever the file says: only what may be seen.
        found = found if keep is None else found[keep(found)]
        in_tail = tail[np.isin(tail_ids, kept).any(axis=1)]
        blocks = np.concatenate((np.sort(found), in_tail[in_tail < stop]))
        weights = inverse_frequency(snapshot.timeline().live_blocks, counts)
        ranked = scores(snapshot.tokens_at(blocks), snapshot.fill_at(blocks), kept, weights, self._config.bm25)
        return best(blocks, ranked, limit)

    def delete(self) -> None:
        """Removes the file, and with it every trace of what was indexed; the next search starts a new one."""
        self._disposable.delete()

    def close(self) -> None:
        """Closes the file; the next use opens it again."""
        self._disposable.close()

    def _rarest(self, terms: U32, counts: I64) -> I64:
        """Which terms a query keeps: ascending indices."""
        order = np.lexsort((terms, counts))
        order = order[counts[order] > 0][: self._config.max_terms]
        within = int(np.searchsorted(np.cumsum(counts[order]), self._config.max_postings, side="right"))
        return np.sort(order[: max(within, 1)])

    def _candidates(self, file: InvertedFile, layout: _Layout, terms: U32, stop: int, keep: Keep | None) -> I64:
        """The last sealed blocks before `stop` that hold any of the terms and pass, at most `max_postings`, descending."""
        parts: list[I64] = [np.zeros(0, np.int64)]
        room = self._config.max_postings
        for first, last in reversed(_runs(layout.rows)):
            start = int(layout.starts[first])
            shift = int(layout.rows.first_row[first]) - start
            length = min(int(layout.starts[last] + layout.rows.blocks[last]), stop) - start
            if length <= 0 or not room or not len(terms):
                continue
            passing = None if keep is None else partial(_shifted, keep, shift)
            rows = file.newest(terms, start + shift, start + shift + length - 1, room, passing)
            parts.append(rows - shift)
            room -= len(rows)
        return np.concatenate(parts)

    def _dead_counts(self, file: InvertedFile, snapshot: Snapshot) -> TermCounts:
        """In how many dead sealed blocks each token occurs."""
        dead = snapshot.timeline().dead
        key = (snapshot.key, dead)
        if self._dead is None or self._dead[0] != key:
            names = snapshot.segments() if dead else []
            size = snapshot.sealed_blocks // max(len(names), 1)
            self._dead = key, TermCounts.sum([TermCounts.empty(), *self._dead_parts(file, snapshot, names, size)])
        return self._dead[1]

    def _dead_parts(self, file: InvertedFile, snapshot: Snapshot, names: list[str], size: int) -> Iterator[TermCounts]:
        parts: dict[int, list[tuple[int, int]]] = {}
        for start, stop in snapshot.timeline().dead:
            for number in range(start // max(size, 1), min(-(-stop // max(size, 1)), len(names))):
                inside = max(start - number * size, 0), min(stop - number * size, size)
                parts.setdefault(number, []).append(inside)
        for number, spans in parts.items():
            if spans == [(0, size)]:
                yield file.segment_counts(names[number])
                continue
            key = names[number], tuple(spans)
            if key not in self._dead_spans:
                blocks = np.concatenate([np.arange(*span, dtype=np.int64) for span in spans])
                ids, fill = snapshot.shown(number * size, (number + 1) * size)
                self._dead_spans[key] = TermCounts.of_blocks(ids[blocks], fill[blocks])
                if len(self._dead_spans) > KEEP_DEAD:
                    self._dead_spans.popitem(last=False)
            yield self._dead_spans[key]

    def _layout(self, file: InvertedFile, snapshot: Snapshot, progress: Progress = silent) -> _Layout:
        key = snapshot.key
        layout = self._layouts.get(key)
        if layout is None:
            names = snapshot.segments()
            size = snapshot.sealed_blocks // max(len(names), 1)
            rows = file.add(names, size, snapshot.shown, progress)
            if np.any(rows.blocks != size):
                raise sqlite3.DatabaseError("a segment was indexed with another length")
            layout = _Layout(rows, np.arange(len(names), dtype=np.int64) * size, file.counts(names))
            self._layouts[key] = layout
            if len(self._layouts) > KEEP_LAYOUTS:
                self._layouts.popitem(last=False)
        self._layouts.move_to_end(key)
        return layout


NOTHING = Hits(np.zeros(0, np.int64), np.zeros(0, np.float32))


def best(blocks: I64, ranked: F64, limit: int) -> Hits:
    """The `limit` blocks with the highest scores above 0; of equal ones the newer comes first."""
    order = np.lexsort((-blocks, -ranked))[: min(limit, int(np.count_nonzero(ranked > 0)))]
    return Hits(blocks[order], ranked[order].astype(np.float32))


def visible(snapshot: Snapshot, allowed: Keep | None) -> Keep | None:
    """What can be found of a snapshot: live, not denied, not pruned, and allowed; None where that is everything."""
    timeline = snapshot.timeline()
    if not timeline.dead and not timeline.denied and not timeline.pruned:
        return allowed

    def passes(blocks: I64) -> Bool:
        raw = np.zeros(len(blocks), np.int8)
        live = ~(timeline.absent_mask(raw, blocks) | timeline.pruned_mask(raw, blocks))
        return live if allowed is None else live & allowed(blocks)

    return passes


def _shifted(keep: Keep, shift: int, rows: I64) -> Bool:
    return keep(rows - shift)


def _runs(rows: SegmentRows) -> list[tuple[int, int]]:
    """Stretches (first, last) of segments that lie behind each other in the file as in the timeline."""
    if not len(rows.first_row):
        return []
    gaps = np.flatnonzero(rows.first_row[1:] != rows.first_row[:-1] + rows.blocks[:-1])
    return list(zip([0, *(gaps + 1).tolist()], [*gaps.tolist(), len(rows.first_row) - 1], strict=True))
