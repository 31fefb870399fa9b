"""The file behind text search: an inverted index from trigrams of characters to blocks, in SQLite's FTS5.

It answers one question: which blocks may hold a text? Those that hold all of its trigrams; whether they do is for the
reader to check (R. Cox, *Regular Expression Matching with a Trigram Index*, 2012). Texts of one or two characters are
looked up as beginnings of trigrams, which FTS5's own trigram tokenizer cannot do; so each trigram is written as a word
of letters, five for each character.

A *piece* is what two consecutive segments of a timeline give: the passage of the first one's last block, which reaches
into the second, then those of all blocks of the second (the last without what follows it). It is named by both, so
branches share pieces as far as they share their past. Row `first_row` of a piece is the seam, the others are its blocks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megacontext.index.bm25 import I64
from megacontext.index.disposable import Keep, Progress, connect, newest, silent, transaction

VERSION = 1
# More trigrams of a long text narrow it down no further, or hardly.
MAX_GRAMS = 16
_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz012345", np.uint8)
_SHIFTS = np.arange(20, -1, -5, dtype=np.uint32)
_CHARACTER = len(_SHIFTS)
_WORD = 3 * _CHARACTER
# A text's last characters begin trigrams too.
_END = "  "

_SCHEMA = f"""
CREATE TABLE pieces(name TEXT PRIMARY KEY, first_row INTEGER NOT NULL UNIQUE, rows INTEGER NOT NULL);
CREATE VIRTUAL TABLE grams USING fts5(words, content='', columnsize=0, detail=none, tokenize='ascii');
PRAGMA user_version = {VERSION};
"""

# Folded texts of the rows of a piece, by its number.
ReadPiece = Callable[[int], Sequence[str]]


class TrigramFile:
    """An open file. Raises sqlite3.Error whenever the file or its folder is unusable. One thread at a time."""

    def __init__(self, path: Path | None) -> None:
        """Opens or creates the file at `path`; None keeps the index in this process's memory."""
        self._db = connect(path, VERSION, _SCHEMA)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def add(self, segments: Sequence[str], rows: int, read: ReadPiece, progress: Progress = silent) -> I64:
        """Indexes those pieces of a timeline that are missing, each of `rows` rows and in a transaction of its own, so
        that work goes on where it stopped. Returns the first row of each piece, int64 [s]."""
        names = [f"{before}>{name}" for before, name in zip(["", *segments], segments, strict=False)]
        known = self._known(names)
        missing = [number for number, name in enumerate(names) if name not in known]
        for done, number in enumerate(missing):
            progress(done, len(missing))
            known[names[number]] = self._insert(names[number], read(number))
        if any(count != rows for _, count in known.values()):
            raise sqlite3.DatabaseError("a segment was indexed with another length")
        return np.array([known[name][0] for name in names], np.int64)

    def newest(self, texts: Sequence[str], first_row: int, last_row: int, limit: int, keep: Keep) -> I64:
        """The last `limit` of the rows `first_row` to `last_row` that may hold all of the folded `texts`, and that
        `keep`, given rows, lets pass; descending."""
        query = " AND ".join(dict.fromkeys(word for text in texts for word in _words_of(text)))
        select = "SELECT rowid FROM grams WHERE grams MATCH ? AND rowid BETWEEN ? AND ? ORDER BY rowid DESC"
        return newest(self._db, select, (query, first_row, last_row), limit, keep)

    def holds(self, row: int, text: str) -> bool:
        """Whether a row may hold a folded text."""
        query = "SELECT 1 FROM grams WHERE grams MATCH ? AND rowid = ?"
        return self._db.execute(query, (" AND ".join(_words_of(text)), row)).fetchone() is not None

    def _known(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        known: dict[str, tuple[int, int]] = {}
        for start in range(0, len(names), 500):
            part = names[start : start + 500]
            marks = ",".join("?" * len(part))
            query = f"SELECT name, first_row, rows FROM pieces WHERE name IN ({marks})"
            known.update({name: (row, rows) for name, row, rows in self._db.execute(query, part)})
        return known

    def _insert(self, name: str, texts: Sequence[str]) -> tuple[int, int]:
        lines = _lines(texts)
        with transaction(self._db):
            there = self._known([name]).get(name)
            if there is None:
                query = "SELECT coalesce(max(first_row + rows), 0) FROM pieces"
                there = int(self._db.execute(query).fetchone()[0]), len(texts)
                self._db.executemany("INSERT INTO grams(rowid, words) VALUES (?, ?)", enumerate(lines, there[0]))
                self._db.execute("INSERT INTO pieces VALUES (?, ?, ?)", (name, *there))
        return there


def _lines(texts: Sequence[str]) -> list[str]:
    """The distinct trigrams of each folded text, as words."""
    joined = "".join(text + _END for text in texts)
    codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32).astype(np.int64)
    lengths = np.array([len(text) + len(_END) for text in texts], np.int64)
    row = np.repeat(np.arange(len(texts)), lengths)
    begins = np.flatnonzero(row[:-2] == row[2:]) if len(row) else np.zeros(0, np.int64)
    keys = codes[begins] << 42 | codes[begins + 1] << 21 | codes[begins + 2]
    order = np.lexsort((keys, row[begins]))
    keys, owner = keys[order], row[begins][order]
    first = np.ones(len(keys), np.bool_)
    first[1:] = (keys[1:] != keys[:-1]) | (owner[1:] != owner[:-1])
    keys, owner = keys[first], owner[first]
    characters = np.stack([keys >> 42, keys >> 21 & 0x1FFFFF, keys & 0x1FFFFF], axis=1).astype(np.uint32)
    words = np.full((len(keys), _WORD + 1), ord(" "), np.uint8)
    words[:, :_WORD] = _letters(characters)
    text = words.tobytes().decode("ascii")
    stops = np.searchsorted(owner, np.arange(len(texts) + 1)) * (_WORD + 1)
    return [text[start:stop] for start, stop in zip(stops[:-1].tolist(), stops[1:].tolist(), strict=True)]


def _words_of(text: str) -> list[str]:
    """What FTS5 has to look for: some trigrams of a folded text, or the beginning of one."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    if len(codes) < 3:
        return [_letters(codes[None]).tobytes().decode("ascii") + " *"]
    trigrams = np.lib.stride_tricks.sliding_window_view(codes, 3)
    some = np.unique(np.linspace(0, len(trigrams) - 1, MAX_GRAMS).astype(np.int64))
    return [line.tobytes().decode("ascii") for line in _letters(trigrams[some])]


def _letters(characters: np.typing.NDArray[np.uint32]) -> np.typing.NDArray[np.uint8]:
    """Characters [n, c] as five letters each, uint8 [n, 5c]."""
    letters: np.typing.NDArray[np.uint8] = _LETTERS[(characters[..., None] >> _SHIFTS) & 31]
    return letters.reshape(len(characters), characters.shape[1] * len(_SHIFTS))
