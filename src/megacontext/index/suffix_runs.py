"""Sorted runs: the grams of some segments of a timeline, in files that are mapped and never changed.

A run has, for each length, the grams of its places sorted by name and then by place, so that where a gram occurred is
one stretch, newest last. A timeline of sealed segments is covered by few runs, each of 8^k segments that begin at a multiple
of 8^k: at most 7 a level, so their number grows with the logarithm of the history (a log-structured merge: O'Neil et al.
1996). Small runs are made from tokens, larger ones by merging, a slice of names at a time.

A run is called after the segments that it covers and the one before them, which its first grams reach into: so
branches share runs, and readers that are denied different parts never do. The file is an array of NumPy's own format,
uint32 [2, m] with names above places, lengths one behind the other; all that it says is compared with the record before it
counts, so a damaged file can hide places, never show wrong ones.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.format import open_memmap

from megacontext.core.node import BLOCK
from megacontext.index.bm25 import I64, U8, U32
from megacontext.index.suffix_grams import LENGTHS, Places, grams
from megacontext.storage.hashing import digest

log = logging.getLogger(__name__)

VERSION = 1
FAN = 8
# Runs of more segments are merged from smaller ones; those up to it take some 250 MB to make.
DIRECT = 64
# Grams that are merged together.
_SLICE = 1 << 22
_SAMPLES = 256
_HEAD = len(LENGTHS) + 1

# Tokens uint32 [k, 32], fill uint8 [k] and documents uint32 [k] of blocks start:stop of a timeline.
ReadBlocks = Callable[[int, int], tuple[U32, U8, U32]]


class Damaged(Exception):
    """A file is not a run. Never leaves the package: the run is made again."""


class Run:
    """The grams of the blocks `start:stop`, from one array: its head tells where each length begins."""

    def __init__(self, array: U32, start: int, stop: int) -> None:
        """Raises Damaged where the array, uint32 [2, m], is no run."""
        if array.dtype != np.uint32 or array.ndim != 2 or len(array) != 2 or array.shape[1] < _HEAD:
            raise Damaged("not a run")
        self.start, self.stop = start, stop
        plain = array.view(np.ndarray)
        edges = np.concatenate([[_HEAD], _HEAD + np.cumsum(plain[0, 1:_HEAD].astype(np.int64))]).tolist()
        if plain[0, 0] != VERSION or edges[-1] != plain.shape[1]:
            raise Damaged("a run of another version, or part of one")
        self._parts = [Places(plain[0, low:high], plain[1, low:high]) for low, high in pairwise(edges)]
        for names, _ in self._parts:
            some = names[np.linspace(0, len(names) - 1, _SAMPLES).astype(np.int64)] if len(names) else names
            if np.any(some[1:] < some[:-1]):
                raise Damaged("a run that is not in order")

    def of(self, number: int) -> Places:
        """The grams of a length (by its number) in order; places from the run's first token."""
        return self._parts[number]

    def newest(self, number: int, name: np.uint32, before: int, most: int) -> tuple[I64, bool]:
        """The last places of the timeline before `before` that follow the grams of this name, descending, and whether there
        are more than `most`."""
        names, places = self._parts[number]
        low, high = int(names.searchsorted(name, "left")), int(names.searchsorted(name, "right"))
        if low < high and before < self.stop * BLOCK:
            high = low + int(places[low:high].searchsorted(np.uint32(max(before - self.start * BLOCK, 0))))
        found = places[max(low, high - most) : high][::-1].astype(np.int64) + self.start * BLOCK
        return found, high - low > most


class Span(NamedTuple):
    """Segments `start:stop` of a timeline."""

    start: int
    stop: int

    def parts(self) -> Iterator[Span]:
        """The spans of the level below."""
        step = max((self.stop - self.start) // FAN, 1)
        return (Span(start, start + step) for start in range(self.start, self.stop, step))


def tiling(segments: int) -> list[Span]:
    """The fewest spans of 8^k segments, each at a multiple of its size, that cover so many segments."""
    spans, start, size = [], 0, 1
    while size * FAN <= segments:
        size *= FAN
    while start < segments:
        if start + size > segments:
            size //= FAN
        else:
            spans.append(Span(start, start + size))
            start += size
    return spans


class RunFiles:
    """The runs of a memory, made when they are asked for. One thread at a time; any number of processes."""

    def __init__(self, folder: Path, *, direct: int = DIRECT) -> None:
        """`direct`: runs of up to so many segments are made from tokens, larger ones from those of the level below."""
        self.folder, self._direct = folder, direct
        self._open: dict[str, Run] = {}
        self._seen = 0

    def runs(self, names: list[str], segment_blocks: int, read: ReadBlocks) -> list[Run]:
        """Runs that cover the segments with these names, in order; `read` gives the blocks of their timeline."""
        timeline = _Timeline(names, segment_blocks, read)
        return [self._run(timeline, span) for span in tiling(len(names))]

    def check(self) -> bool:
        """False where somebody changed the folder since the last call: what is open may be unwanted, and was let go."""
        try:
            now = self.folder.stat().st_mtime_ns
        except OSError:
            now = 0
        same = now == self._seen
        if not same:
            self._open = {name: run for name, run in self._open.items() if self._path(name).exists()}
            self._seen = now
        return same

    def delete(self) -> None:
        """Removes all files."""
        self.close()
        for path in self.folder.glob("suffix-*.npy") if self.folder.is_dir() else ():
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets all files go."""
        self._open.clear()

    def _path(self, name: str) -> Path:
        return self.folder / f"suffix-{name[:32]}.npy"

    def _run(self, timeline: _Timeline, span: Span) -> Run:
        name = timeline.name(span)
        if name not in self._open:
            blocks = timeline.blocks(span)
            self._open[name] = self._loaded(name, blocks) or self._made(timeline, span, name)
        return self._open[name]

    def _loaded(self, name: str, blocks: tuple[int, int]) -> Run | None:
        try:
            return Run(np.load(self._path(name), mmap_mode="r"), *blocks)
        except (OSError, ValueError, EOFError, Damaged):
            return None

    def _made(self, timeline: _Timeline, span: Span, name: str) -> Run:
        """A new run: in a file, or in this process's memory where none can be written."""
        blocks, path = timeline.blocks(span), self._path(name)
        parts: list[Run] = []
        if span.stop - span.start > self._direct:
            parts = [self._run(timeline, part) for part in span.parts()]

        def array(path: Path | None) -> U32:
            return _merged(parts, blocks[0], path) if parts else _sorted(timeline.grams(span), path)

        draft = self.folder / f".suffix-{secrets.token_hex(8)}"
        try:
            self.folder.mkdir(exist_ok=True)
            array(draft)
            draft.replace(path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            log.warning("%s cannot be written (%s); what it would hold is kept in memory", path, error)
            return Run(array(None), *blocks)
        run = self._loaded(name, blocks) or Run(array(None), *blocks)
        self._forget(timeline, span)
        return run

    def _forget(self, timeline: _Timeline, span: Span) -> None:
        """Removes the runs that a new one stands for."""
        if span.stop - span.start == 1:
            return
        for part in span.parts():
            name = timeline.name(part)
            self._open.pop(name, None)
            self._path(name).unlink(missing_ok=True)


class _Timeline:
    """The sealed segments of one timeline, as runs see them."""

    def __init__(self, names: list[str], segment_blocks: int, read: ReadBlocks) -> None:
        self._names, self._size, self._read = names, segment_blocks, read

    def name(self, span: Span) -> str:
        """What the run of a span is called."""
        before = self._names[span.start - 1] if span.start else ""
        facts = "\n".join((f"suffix {VERSION} {LENGTHS} {self._size}", before, *self._names[span.start : span.stop]))
        return digest(facts.encode())

    def blocks(self, span: Span) -> tuple[int, int]:
        """The blocks of a span."""
        return span.start * self._size, span.stop * self._size

    def grams(self, span: Span) -> list[Places]:
        """The grams of a span, places ascending."""
        start, stop = self.blocks(span)
        lead = min(start, 1)
        return grams(*self._read(start - lead, stop), lead)


def run_of(parts: list[Places], start: int, stop: int) -> Run:
    """A run in memory from the grams of the blocks `start:stop`."""
    return Run(_sorted(parts, None), start, stop)


def _empty(counts: list[int], path: Path | None) -> U32:
    """The array of a run with so many grams of each length, its head filled in."""
    shape = (2, _HEAD + sum(counts))
    array = np.zeros(shape, np.uint32) if path is None else open_memmap(path, mode="w+", dtype=np.uint32, shape=shape)
    array[0, 0] = VERSION
    array[0, 1:_HEAD] = counts
    return array


def _sorted(parts: list[Places], path: Path | None) -> U32:
    """The array of the run of these grams; in a file, or in memory for None."""
    array, at = _empty([len(part.names) for part in parts], path), _HEAD
    for names, places in parts:
        array[:, at : at + len(names)] = _in_order(names, places)
        at += len(names)
    return _written(array)


def _written(array: U32) -> U32:
    if isinstance(array, np.memmap):
        array.flush()
    return array


def _in_order(names: U32, places: U32) -> U32:
    """Grams by name, then by place: uint32 [2, m]."""
    keys = (names.astype(np.uint64) << np.uint64(32)) | places
    keys.sort()
    return np.stack([(keys >> np.uint64(32)).astype(np.uint32), keys.astype(np.uint32)])


def _merged(runs: list[Run], start: int, path: Path | None) -> U32:
    """The array of the run that these make together, which begins at block `start`; in a file, or in memory for None."""
    parts = [[run.of(number) for run in runs] for number in range(len(LENGTHS))]
    array, at = _empty([sum(len(each.names) for each in some) for some in parts], path), _HEAD
    shifts = [np.uint32((run.start - start) * BLOCK) for run in runs]
    for some in parts:
        total = sum(len(each.names) for each in some)
        edges = np.linspace(0, 1 << 32, total // _SLICE + 2).astype(np.uint64)[1:-1].astype(np.uint32)
        cuts = np.stack([np.concatenate([[0], np.searchsorted(each.names, edges), [len(each.names)]]) for each in some])
        for low, high in zip(cuts.T[:-1], cuts.T[1:], strict=True):
            pieces = list(zip(some, shifts, low.tolist(), high.tolist(), strict=True))
            names = np.concatenate([each.names[a:b] for each, _, a, b in pieces])
            places = np.concatenate([each.places[a:b] + shift for each, shift, a, b in pieces])
            array[:, at : at + len(names)] = _in_order(names, places)
            at += len(names)
    return _written(array)
