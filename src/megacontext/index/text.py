"""Text search: which blocks hold what somebody typed, letter for letter, ranked by BM25 over its terms.

What `TextIndex.search` finds is defined on the snapshot alone; the file only says where to look, and each block is read
again before it counts:

* Blocks, passages, terms and how often a term occurs in a block are as `index.passages` has them.
* Looked at are the last `max_together` sealed blocks before `before_block` that hold the trigrams of all terms, for each
  term the last `max_each` that hold its trigrams, and the whole tail; only live and allowed ones. So the cost does not
  grow with the history, but for dead and denied blocks passed over.
* A hit holds every required term, and at least one term. Hits are ranked by BM25, where the document frequency of a
  term is the number of blocks that were looked at and hold it; of equal ones the newer comes first.

A damaged file can hide blocks, never show wrong ones; SQLite notices most damage, and the first use of a file in a
process, and of each new timeline, compares some of its rows with the record.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megacontext.errors import ConfigError
from megacontext.index.bm25 import F64, I64, Bm25Config, inverse_frequency
from megacontext.index.disposable import FOLDER, Bool, DisposableFile, Keep, Progress, silent
from megacontext.index.fulltext import KEEP_LAYOUTS, NOTHING, Hits, best, visible
from megacontext.index.passages import Decode, Term, occurrences, own_texts, passages, terms_of
from megacontext.index.trigrams import TrigramFile
from megacontext.storage.snapshot import Snapshot

FILE = "text.sqlite"
# So many rows of an index are compared with the record.
_SPOT_CHECKS = 4
_SPOT_CHARACTERS = 12


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How many sealed blocks are looked at: `max_together` for all terms, `max_each` for each; `bm25` ranks them."""

    max_together: int = 1024
    max_each: int = 256
    bm25: Bm25Config = field(default_factory=Bm25Config)

    def __post_init__(self) -> None:
        if min(self.max_together, self.max_each) < 1:
            raise ConfigError("max_together and max_each must be at least 1")


class TextIndex:
    """The text index of a memory, shared by its branches. Safe to use from several threads and processes.

    A missing or damaged file is rebuilt as it is needed; where none can be written, the index is kept in this
    process's memory. Both are logged and never fatal.
    """

    def __init__(self, memory: Path | str, decode: Decode, *, config: TextConfig | None = None) -> None:
        """`memory` is the memory's folder; `decode` gives the texts of sequences of its tokens."""
        self.path = Path(memory) / FOLDER / FILE
        self._decode = decode
        self._config = config or TextConfig()
        self._first_rows: OrderedDict[str, I64] = OrderedDict()
        self._disposable = DisposableFile(self.path, TrigramFile, self._first_rows.clear)

    def ensure(self, snapshot: Snapshot, progress: Progress = silent) -> None:
        """Indexes the sealed segments of a snapshot that are not indexed yet; `search` does so too."""
        self._disposable.using(lambda file: self._layout(file, snapshot, progress))

    def search(
        self, snapshot: Snapshot, query: str, limit: int, before_block: int | None = None, allowed: Keep | None = None
    ) -> Hits:
        """The at most `limit` best complete blocks of the snapshot for what somebody typed; see `passages.terms_of`.

        With `before_block`, only blocks before that one; with `allowed` (blocks int64 [k] to bool [k]), only those that it
        lets pass. Never a dead block, nor one of another branch.
        """
        terms = terms_of(query)
        stop = snapshot.blocks if before_block is None else min(before_block, snapshot.blocks)
        if limit < 1 or stop <= 0 or not terms:
            return NOTHING
        keep = visible(snapshot, allowed) or _everything
        sealed = snapshot.sealed_blocks
        found = self._disposable.using(lambda file: self._candidates(file, snapshot, terms, min(stop, sealed), keep))
        # The last sealed block may reach into the tail.
        tail = np.arange(max(sealed - 1, 0), stop, dtype=np.int64)
        blocks = np.unique(np.concatenate([found, tail]))
        blocks = blocks[keep(blocks)]
        counts = occurrences(snapshot, blocks, terms, self._decode)
        required = [at for at, term in enumerate(terms) if term.required]
        ranked = np.where((counts[:, required] > 0).all(axis=1), self._scores(snapshot, blocks, counts), 0.0)
        return best(blocks, ranked, limit)

    def delete(self) -> None:
        """Removes the file, and with it every trace of what was indexed; the next search starts a new one."""
        self._disposable.delete()

    def close(self) -> None:
        """Closes the file; the next use opens it again."""
        self._disposable.close()

    def _scores(self, snapshot: Snapshot, blocks: I64, counts: F64) -> F64:
        config = self._config.bm25
        weights = inverse_frequency(snapshot.timeline().live_blocks, np.count_nonzero(counts, axis=0))
        length = snapshot.fill_at(blocks).astype(np.float64) / 32
        norm = config.k1 * (1 - config.b + config.b * length)[:, None]
        scores: F64 = (weights * counts * (config.k1 + 1) / (counts + norm)).sum(axis=1)
        return scores

    def _candidates(self, file: TrigramFile, snapshot: Snapshot, terms: Sequence[Term], stop: int, keep: Keep) -> I64:
        """Sealed blocks before `stop` to look at, int64."""
        first_rows = self._layout(file, snapshot)
        if not len(first_rows):
            return np.zeros(0, np.int64)
        size = snapshot.sealed_blocks // len(first_rows)
        texts = [term.text for term in terms]
        wanted = [(texts, self._config.max_together)]
        if len(texts) > 1 and not all(term.required for term in terms):
            wanted += [([text], self._config.max_each) for text in texts]
        found = [_newest(file, first_rows, size, each, room, stop, keep) for each, room in wanted]
        return np.concatenate(found)

    def _layout(self, file: TrigramFile, snapshot: Snapshot, progress: Progress = silent) -> I64:
        """The first row of each piece of the timeline; indexes what is missing."""
        key = snapshot.key
        rows = self._first_rows.get(key)
        if rows is None:
            names = snapshot.segments()
            size = snapshot.sealed_blocks // max(len(names), 1)
            rows = file.add(names, size + 1, lambda number: self._piece(snapshot, number, size), progress)
            self._compare(file, snapshot, rows, size)
            self._first_rows[key] = rows
            if len(self._first_rows) > KEEP_LAYOUTS:
                self._first_rows.popitem(last=False)
        self._first_rows.move_to_end(key)
        return rows

    def _piece(self, snapshot: Snapshot, number: int, size: int) -> list[str]:
        """Texts of the rows of a piece; see `index.trigrams`."""
        blocks = np.arange(number * size - 1, (number + 1) * size)
        texts = passages(snapshot, np.maximum(blocks, 0), self._decode)
        # What lies behind the piece is not part of its name, nor is there anything before the first.
        texts[-1:] = own_texts(snapshot, blocks[-1:], self._decode)
        if number == 0:
            texts[0] = ""
        return texts

    def _compare(self, file: TrigramFile, snapshot: Snapshot, first_rows: I64, size: int) -> None:
        """Whether some blocks, the newest among them, are found where they are; sqlite3.DatabaseError otherwise."""
        total = len(first_rows) * size
        blocks = np.unique(np.linspace(total - 1, 0, _SPOT_CHECKS).astype(np.int64)) if total else np.zeros(0, np.int64)
        for block, text in zip(blocks.tolist(), own_texts(snapshot, blocks, self._decode), strict=True):
            # Its end may look otherwise where a character lies across it.
            row, begin = int(first_rows[block // size]) + 1 + block % size, text[:_SPOT_CHARACTERS].rstrip("\ufffd")
            if begin and not file.holds(row, begin):
                raise sqlite3.DatabaseError("rows that were indexed are gone")


def _newest(file: TrigramFile, first_rows: I64, size: int, texts: list[str], limit: int, stop: int, keep: Keep) -> I64:
    """The last `limit` passing blocks before `stop` whose passages may hold all of the texts."""
    found: list[I64] = [np.zeros(0, np.int64)]
    gaps = np.flatnonzero(np.diff(first_rows) != size + 1) + 1
    for pieces in reversed(np.split(np.arange(len(first_rows)), gaps)):
        first = int(first_rows[pieces[0]])
        blocks_of = _blocks_of(first, int(pieces[0]), size)
        passing = _below(blocks_of, stop, keep)
        # A seam's block may come twice, once for each of its rows.
        rows = file.newest(texts, first, first + len(pieces) * (size + 1) - 1, 2 * limit, passing)
        found.append(np.unique(blocks_of(rows))[::-1])
        if sum(map(len, found)) >= limit:
            break
    return np.concatenate(found)[:limit]


def _blocks_of(first_row: int, piece: int, size: int) -> Callable[[I64], I64]:
    """From rows of consecutive pieces to blocks; see `index.trigrams`."""

    def blocks(rows: I64) -> I64:
        number, place = np.divmod(rows - first_row, size + 1)
        return (piece + number) * size + place - 1

    return blocks


def _below(blocks_of: Callable[[I64], I64], stop: int, keep: Keep) -> Keep:
    def passes(rows: I64) -> Bool:
        blocks = blocks_of(rows)
        inside = (blocks >= 0) & (blocks < stop)
        inside[inside] = keep(blocks[inside])
        return inside

    return passes


def _everything(blocks: I64) -> Bool:
    return np.ones(len(blocks), np.bool_)
