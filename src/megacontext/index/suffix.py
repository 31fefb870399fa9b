"""Token suffixes: where did the last tokens occur before, and what followed?

What `SuffixIndex.find` finds is defined on the snapshot alone, whatever an index file holds:

* A *place* is a position that holds a real token with another one of its document right before it (`index.suffix_grams`). It
  *matches* n tokens of a query when its last n tokens stand in front of the place, in its document, without a gap, all of them
  live, not denied and not pruned, as is the place's own block.
* Found are, for each length n of 1, 2, 4, 8 and 16 that the query has, the last `each` places before `stop` that match n
  tokens; together at most 5 · `each`. So of long matches all recent ones are found, of short ones only the newest.
* They are ranked by how many tokens they really match (at most `LONGEST`), and of equal ones the newer comes first.

Cost does not grow with the history, but for its logarithm, and for dead places that are passed over.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from megacontext.core.node import BLOCK
from megacontext.index.bm25 import I64, U8, U32
from megacontext.index.disposable import FOLDER
from megacontext.index.fulltext import KEEP_LAYOUTS
from megacontext.index.suffix_grams import LENGTHS, Places, grams, names_of, reach_of
from megacontext.index.suffix_runs import DIRECT, Run, RunFiles, run_of
from megacontext.storage.snapshot import Snapshot

LONGEST = 32
"""Matches are told apart up to this many tokens."""

_BACK = -(-LONGEST // BLOCK)
# Tail blocks that are sorted together; fewer are looked through.
_TAIL_RUN = 1024


class Matches(NamedTuple):
    """Places that follow earlier occurrences of a query's last tokens, int64 [k], best first, and how many of these tokens
    stand in front of each, int64 [k], 1 to `LONGEST`."""

    places: I64
    lengths: I64

    @property
    def blocks(self) -> I64:
        """The blocks that the places lie in, int64 [k]; the same one may come again."""
        return self.places // BLOCK


NO_MATCHES = Matches(np.zeros(0, np.int64), np.zeros(0, np.int64))


class SuffixIndex:
    """The suffix index of a memory, shared by its branches. Safe to use from several threads and processes.

    Missing or damaged files are made again as they are needed; where none can be written, what they would hold is kept in
    this process's memory. Both are logged and never fatal.
    """

    def __init__(self, memory: Path | str, *, direct: int = DIRECT) -> None:
        """`memory` is the memory's folder; `direct` as in `RunFiles`."""
        self._files = RunFiles(Path(memory) / FOLDER, direct=direct)
        self._layouts: OrderedDict[str, list[Run]] = OrderedDict()
        self._tails: OrderedDict[str, _Tail] = OrderedDict()
        self._lock = threading.RLock()

    def ensure(self, snapshot: Snapshot) -> None:
        """Indexes what is not indexed yet; `find` does so too."""
        with self._lock:
            self._pieces(snapshot)

    def find(self, snapshot: Snapshot, query: ArrayLike, *, each: int = 8, stop: int | None = None) -> Matches:
        """Where the last tokens of `query` (token ids [q], oldest first) occurred before; see the module.

        Only places before `stop` (a position in tokens; None: all in complete blocks), and none that is dead, denied, pruned
        or of another branch.
        """
        tokens = np.asarray(query, np.int64)[-LONGEST:]
        before = min(stop if stop is not None else snapshot.blocks * BLOCK, snapshot.blocks * BLOCK)
        if each < 1 or before <= 0 or not len(tokens):
            return NO_MATCHES
        with self._lock:
            pieces = self._pieces(snapshot)
            found = _Search(snapshot, tokens, pieces, before).run(each)
        return found

    def delete(self) -> None:
        """Removes the files, and with them every trace of what was indexed; the next search makes new ones."""
        with self._lock:
            self.close()
            self._files.delete()

    def close(self) -> None:
        """Lets the files go; the next use opens them again."""
        with self._lock:
            self._files.close()
            self._layouts.clear()
            self._tails.clear()

    def _pieces(self, snapshot: Snapshot) -> list[Run | _Recent]:
        """What covers the timeline, newest first."""
        if not self._files.check():
            self._layouts.clear()
        key = snapshot.key
        if key not in self._layouts:
            names = snapshot.segments()
            size = snapshot.sealed_blocks // max(len(names), 1)
            self._layouts[key] = self._files.runs(names, size, lambda start, stop: _shown(snapshot, start, stop))
        if key not in self._tails:
            self._tails[key] = _Tail(snapshot.sealed_blocks)
        for kept in (self._layouts, self._tails):
            kept.move_to_end(key)
            if len(kept) > KEEP_LAYOUTS:
                kept.popitem(last=False)
        return [*self._tails[key].pieces(snapshot), *reversed(self._layouts[key])]


class _Search:
    """One search: which places are left to look for, length by length."""

    def __init__(self, snapshot: Snapshot, tokens: I64, pieces: list[Run | _Recent], before: int) -> None:
        self._snapshot, self._tokens, self._pieces, self._before = snapshot, tokens, pieces, before

    def run(self, each: int) -> Matches:
        names = names_of(self._tokens)
        asked = dict.fromkeys(range(len(names)), each)
        places, lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        while asked:
            raw = {number: self._newest(number, names[number], most) for number, most in asked.items()}
            sizes = [len(found) for found, _ in raw.values()]
            matched = np.split(self._matched(np.concatenate([found for found, _ in raw.values()])), np.cumsum(sizes)[:-1])
            again = {}
            for (number, (found, more)), length in zip(raw.items(), matched, strict=True):
                fits = np.flatnonzero(length >= LENGTHS[number])[:each]
                if len(fits) < each and more:
                    # Other grams of the same name, or dead ones, stood in front.
                    again[number] = 8 * asked[number]
                    continue
                places.append(found[fits])
                lengths.append(length[fits])
            asked = again
        where, first = np.unique(np.concatenate(places), return_index=True)
        length = np.concatenate(lengths)[first]
        order = np.lexsort((-where, -length))
        return Matches(where[order], length[order])

    def _newest(self, number: int, name: np.uint32, most: int) -> tuple[I64, bool]:
        """The last `most` places after grams that may be the query's, descending, and whether there are more."""
        found, room = [np.zeros(0, np.int64)], most
        for at, piece in enumerate(self._pieces):
            part, more = piece.newest(number, name, self._before, room)
            found.append(part)
            room -= len(part)
            if room <= 0:
                return np.concatenate(found), more or at + 1 < len(self._pieces)
        return np.concatenate(found), False

    def _matched(self, places: I64) -> I64:
        """How many of the query's last tokens stand in front of each place, int64 [k]; 0 where the place may not be seen."""
        where = np.unique(places // BLOCK)
        # A damaged file may name any place.
        where = where[(where >= 0) & (where < self._snapshot.blocks)]
        if not len(where):
            return np.zeros(len(places), np.int64)
        blocks = where[:, None] + np.arange(-_BACK, 1)
        ids, fill, documents = _shown_at(self._snapshot, np.maximum(blocks, 0).ravel())
        row = np.minimum(np.searchsorted(where, places // BLOCK), len(where) - 1)
        known = where[row] == places // BLOCK
        width = blocks.shape[1] * BLOCK
        fill = np.where(blocks.ravel() >= 0, fill, 0).astype(np.uint8)
        # A document number of its own for each row: nothing reaches from one row into the next.
        apart = documents.astype(np.int64) * len(where) + np.repeat(np.arange(len(where)), blocks.shape[1])
        reach = reach_of(fill, apart).reshape(len(where), width)
        at = _BACK * BLOCK + places % BLOCK
        room = np.where(known & (reach[row, at] > 1), reach[row, at] - 1, 0)
        back = np.arange(1, len(self._tokens) + 1)
        before = ids.reshape(len(where), width)[row[:, None], at[:, None] - back]
        same = (before == self._tokens[::-1].astype(np.uint32)) & (back <= room[:, None])
        return np.where(same.all(axis=1), len(back), same.argmin(axis=1)).astype(np.int64)


class _Recent:
    """Grams in order of their places: what is too little to be worth sorting."""

    def __init__(self, parts: list[Places], start: int) -> None:
        self._parts, self._start = parts, start

    def newest(self, number: int, name: np.uint32, before: int, most: int) -> tuple[I64, bool]:
        """See `Run.newest`."""
        names, places = self._parts[number]
        found = places[np.flatnonzero(names == name)].astype(np.int64) + self._start * BLOCK
        found = found[found < before][::-1]
        return found[:most], len(found) > most


@dataclass(frozen=True, eq=False)
class _Looked:
    """Blocks as a snapshot showed them."""

    ids: U32
    fill: U8
    documents: U32

    def begins(self, other: _Looked) -> bool:
        """Whether the other's blocks are these and maybe more."""
        count = len(self.fill)
        return all(
            np.array_equal(mine, theirs[:count])
            for mine, theirs in ((self.fill, other.fill), (self.documents, other.documents), (self.ids, other.ids))
        )


class _Tail:
    """The complete blocks behind the sealed ones of a timeline, from `start` on: sorted in runs, but for the last few."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._seen = _Looked(np.zeros((0, BLOCK), np.uint32), np.zeros(0, np.uint8), np.zeros(0, np.uint32))
        self._runs: list[Run] = []
        self._recent: list[Places] = []

    def pieces(self, snapshot: Snapshot) -> list[Run | _Recent]:
        """Newest first, for a snapshot of this timeline. Another session may have written another tail: then all is made
        anew; otherwise only what is new is looked at."""
        now = _Looked(*_shown(snapshot, self._start, snapshot.blocks))
        if not self._seen.begins(now):
            self._seen, self._runs, self._recent = _Looked(*_shown(snapshot, self._start, self._start)), [], []
        while len(self._seen.fill) < len(now.fill):
            self._grow(snapshot, now)
        sorted_to = self._start + len(self._runs) * _TAIL_RUN
        recent: list[Run | _Recent] = [_Recent(self._recent, sorted_to)] if self._recent else []
        return recent + list(reversed(self._runs))

    def _grow(self, snapshot: Snapshot, now: _Looked) -> None:
        """Takes in blocks up to the end, or until there is a run's worth."""
        done, begun = len(self._seen.fill), len(self._runs) * _TAIL_RUN
        stop = min(len(now.fill), begun + _TAIL_RUN)
        first = self._start + done
        lead = min(first, 1)
        parts = grams(*_shown(snapshot, first - lead, self._start + stop), lead)
        shift = np.uint32((done - begun) * BLOCK)
        moved = [Places(part.names, part.places + shift) for part in parts]
        held = self._recent or [Places(part.names[:0], part.places[:0]) for part in parts]
        self._recent = [
            Places(np.concatenate([old.names, new.names]), np.concatenate([old.places, new.places]))
            for old, new in zip(held, moved, strict=True)
        ]
        self._seen = _Looked(now.ids[:stop], now.fill[:stop], now.documents[:stop])
        if stop - begun == _TAIL_RUN:
            self._runs.append(run_of(self._recent, self._start + begun, self._start + stop))
            self._recent = []


def _shown(snapshot: Snapshot, start: int, stop: int) -> tuple[U32, U8, U32]:
    """Tokens, fill and documents of blocks `start:stop`; denied and pruned ones are empty, and of no document."""
    ids, fill = snapshot.shown(start, stop)
    documents = np.zeros(stop - start, np.uint32)
    there = np.flatnonzero(fill)
    documents[there] = snapshot.documents_at(there + start)
    return ids, fill, documents


def _shown_at(snapshot: Snapshot, blocks: I64) -> tuple[U32, U8, U32]:
    """The same of the blocks at int64 [k] indices, dead ones empty, too."""
    ids, fill = snapshot.shown_at(blocks)
    fill[snapshot.timeline().absent_mask(np.zeros(len(blocks), np.int8), blocks)] = 0
    documents = np.zeros(len(blocks), np.uint32)
    there = fill > 0
    documents[there] = snapshot.documents_at(blocks[there])
    return ids, fill, documents
