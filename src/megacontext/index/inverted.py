"""The file behind full-text search: an inverted index from token ids to blocks, in SQLite's FTS5.

Rows of the index are blocks, keyed by the segment they lie in and their place there, so branches that share
segments share rows. FTS5 keeps and merges the posting lists (which block holds which term, nothing else); what
it takes to rank is read from the memory itself, which alone is the truth.

A term is a token id as eight letters a–p, one for each half byte. Beside each segment lies in how many of its
blocks each token occurs; and for every 32nd segment of a timeline, the sum of these over the timeline so far.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megacontext.index.bm25 import I64, U8, U32, real_tokens
from megacontext.index.disposable import Keep, Progress, connect, newest, silent, transaction
from megacontext.storage.hashing import digest

VERSION = 1
CHECKPOINT_SEGMENTS = 32
_LETTERS = np.frombuffer(b"abcdefghijklmnop", np.uint8)
_SHIFTS = np.arange(28, -4, -4, dtype=np.uint32)

_SCHEMA = f"""
CREATE TABLE segments(
    name TEXT PRIMARY KEY, first_row INTEGER NOT NULL UNIQUE, blocks INTEGER NOT NULL,
    terms BLOB NOT NULL, counts BLOB NOT NULL
);
CREATE TABLE totals(timeline TEXT PRIMARY KEY, terms BLOB NOT NULL, counts BLOB NOT NULL);
CREATE VIRTUAL TABLE postings USING fts5(terms, content='', columnsize=0, detail=none, tokenize='ascii');
PRAGMA user_version = {VERSION};
"""

# Tokens and fill of blocks start:stop of the timeline.
ReadBlocks = Callable[[int, int], tuple[U32, U8]]


class SegmentRows(NamedTuple):
    """Segments as indexed, in the order of a timeline: the first row and the number of blocks of each, int64 [s]."""

    first_row: I64
    blocks: I64


class TermCounts(NamedTuple):
    """Numbers of blocks by token id: `terms` int64 [t] ascending, `counts` int64 [t], all positive."""

    terms: I64
    counts: I64

    @classmethod
    def empty(cls) -> TermCounts:
        """Nothing occurs anywhere."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def of_blocks(cls, ids: U32, fill: U8) -> TermCounts:
        """The counts over blocks `ids` [k, 32]."""
        block, slot = np.nonzero(real_tokens(fill))
        pairs = np.unique(ids[block, slot].astype(np.int64) * len(ids) + block)
        return cls(*_int64(np.unique(pairs // max(len(ids), 1), return_counts=True)))

    @classmethod
    def sum(cls, parts: Sequence[TermCounts]) -> TermCounts:
        """The counts over all parts together."""
        terms, place = np.unique(np.concatenate([part.terms for part in parts]), return_inverse=True)
        counts = np.zeros(len(terms), np.int64)
        np.add.at(counts, place, np.concatenate([part.counts for part in parts]))
        return cls(terms, counts)

    @classmethod
    def parse(cls, row: tuple[bytes, bytes]) -> TermCounts:
        """The inverse of `stored`; sqlite3.DatabaseError for what it never gives."""
        if len(row[0]) != len(row[1]) or len(row[0]) % 4:
            raise sqlite3.DatabaseError("the counts of a segment are damaged")
        terms, counts = (np.frombuffer(part, "<u4").astype(np.int64) for part in row)
        return cls(terms, counts)

    def stored(self) -> tuple[bytes, bytes]:
        """As the file keeps them."""
        return self.terms.astype("<u4").tobytes(), self.counts.astype("<u4").tobytes()

    def of(self, terms: U32) -> I64:
        """The counts of `terms` [t], int64 [t]; 0 for those that do not occur."""
        if not len(self.terms):
            return np.zeros(len(terms), np.int64)
        wanted = terms.astype(np.int64)
        at = np.minimum(np.searchsorted(self.terms, wanted), len(self.terms) - 1)
        return np.where(self.terms[at] == wanted, self.counts[at], 0)


def _int64(arrays: tuple[I64, I64]) -> tuple[I64, I64]:
    return arrays[0].astype(np.int64), arrays[1].astype(np.int64)


class InvertedFile:
    """An open index file. Raises sqlite3.DatabaseError whenever the file or its folder is unusable.

    Any number of processes may share a file. One thread at a time.
    """

    def __init__(self, path: Path | None) -> None:
        """Opens or creates the file at `path`; None keeps the index in this process's memory."""
        self._db = connect(path, VERSION, _SCHEMA)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def add(self, names: Sequence[str], segment_blocks: int, read: ReadBlocks, progress: Progress = silent) -> SegmentRows:
        """Indexes those segments of a timeline that are missing, each in a transaction of its own, so that work
        goes on where it stopped. Returns the rows of all."""
        known = self._known(names)
        missing = [number for number, name in enumerate(names) if name not in known]
        for done, number in enumerate(missing):
            progress(done, len(missing))
            start = number * segment_blocks
            ids, fill = read(start, start + segment_blocks)
            known[names[number]] = self._insert(names[number], ids, fill)
        rows = np.array([known[name] for name in names], np.int64).reshape(-1, 2)
        return SegmentRows(rows[:, 0], rows[:, 1])

    def counts(self, names: Sequence[str]) -> TermCounts:
        """In how many blocks of the segments of a timeline each token id occurs."""
        keys = _timeline_keys(names)
        total, at = TermCounts.empty(), 0
        for number in range(len(keys), 0, -1):
            row = self._db.execute("SELECT terms, counts FROM totals WHERE timeline = ?", (keys[number - 1],)).fetchone()
            if row:
                total, at = TermCounts.parse(row), number * CHECKPOINT_SEGMENTS
                break
        while at < len(names):
            part = names[at : at + CHECKPOINT_SEGMENTS]
            total = TermCounts.sum([total, *(self.segment_counts(name) for name in part)])
            at += len(part)
            if at % CHECKPOINT_SEGMENTS == 0:
                key = keys[at // CHECKPOINT_SEGMENTS - 1]
                self._db.execute("INSERT OR IGNORE INTO totals VALUES (?, ?, ?)", (key, *total.stored()))
        return total

    def segment_counts(self, name: str) -> TermCounts:
        """In how many blocks of an indexed segment each token id occurs."""
        row = self._db.execute("SELECT terms, counts FROM segments WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise sqlite3.DatabaseError(f"segment {name} was indexed and is gone")
        return TermCounts.parse(row)

    def newest(self, terms: U32, first_row: int, last_row: int, limit: int, keep: Keep | None = None) -> I64:
        """The last `limit` of the rows `first_row` to `last_row` that hold any of `terms` [t] and that `keep`, given
        rows, lets pass; descending."""
        query = " OR ".join(term.decode() for term in _words(terms).view("S9").ravel().tolist())
        select = "SELECT rowid FROM postings WHERE postings MATCH ? AND rowid BETWEEN ? AND ? ORDER BY rowid DESC"
        return newest(self._db, select, (query, first_row, last_row), limit, keep)

    def _known(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        known: dict[str, tuple[int, int]] = {}
        for start in range(0, len(names), 500):
            part = names[start : start + 500]
            marks = ",".join("?" * len(part))
            query = f"SELECT name, first_row, blocks FROM segments WHERE name IN ({marks})"
            known.update({name: (row, blocks) for name, row, blocks in self._db.execute(query, part)})
        return known

    def _insert(self, name: str, ids: U32, fill: U8) -> tuple[int, int]:
        rows, counts = _texts(ids, fill), TermCounts.of_blocks(ids, fill)
        with transaction(self._db):
            there = self._known([name]).get(name)
            if there is None:
                query = "SELECT coalesce(max(first_row + blocks), 0) FROM segments"
                first = int(self._db.execute(query).fetchone()[0])
                there = first, len(ids)
                self._db.executemany("INSERT INTO postings(rowid, terms) VALUES (?, ?)", enumerate(rows, first))
                self._db.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?)", (name, *there, *counts.stored()))
        return there


def _words(ids: U32) -> U8:
    """Token ids [...] as eight letters and a space, uint8 [..., 9]."""
    words = np.full((*ids.shape, 9), ord(" "), np.uint8)
    words[..., :8] = _LETTERS[(ids[..., None] >> _SHIFTS) & 15]
    return words


def _texts(ids: U32, fill: U8) -> list[str]:
    """A line of terms for each block."""
    words = np.where(real_tokens(fill)[..., None], _words(ids), np.uint8(ord(" ")))
    return [line.tobytes().decode("ascii") for line in words]


def _timeline_keys(names: Sequence[str]) -> list[str]:
    """For every 32nd segment, a name for the timeline up to and including it."""
    keys: list[str] = []
    for stop in range(CHECKPOINT_SEGMENTS, len(names) + 1, CHECKPOINT_SEGMENTS):
        part = "".join((keys[-1] if keys else "", *names[stop - CHECKPOINT_SEGMENTS : stop]))
        keys.append(digest(part.encode()))
    return keys
