"""What the suffix index costs: bytes a token, how fast it is made, and how long a search takes as a history grows.

Beside it, for the same queries: looking at every token (what an index has to beat), and one sorted run for each segment,
never merged (what merging buys). All three find the same places, or the benchmark stops. Times are of one process on
whatever else the machine does: the processor's own seconds, not the clock's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext.core import BLOCK
from megacontext.errors import ConfigError, InvariantError
from megacontext.index.disposable import FOLDER
from megacontext.index.suffix import SuffixIndex
from megacontext.index.suffix_grams import LENGTHS, grams, names_of
from megacontext.index.suffix_runs import Run, run_of, tiling
from megacontext.storage import Repository, Snapshot
from megacontext.storage.segment import SEGMENT_BLOCKS

IntArray = npt.NDArray[np.int64]
_UNMERGED_BLOCKS = 1 << 17
_DOCUMENT_BLOCKS = 256


@dataclass(frozen=True, kw_only=True)
class SuffixBenchConfig:
    """``sizes`` of history in tokens, ascending; ``queries`` searches at each; ``each`` as in ``SuffixIndex.find``."""

    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    queries: int = 200
    each: int = 8

    def __post_init__(self) -> None:
        if not self.sizes or list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] < BLOCK:
            raise ConfigError(f"sizes must ascend and hold at least a block of {BLOCK} tokens each, not {self.sizes}")
        if min(self.queries, self.each) < 1:
            raise ConfigError("queries and each must be at least 1")


def measure_suffixes(
    history: npt.NDArray[np.uint32],
    held_out: IntArray,
    config: SuffixBenchConfig,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Grow a memory of ``history`` uint32 [n, 32] in documents of 256 blocks to each size, and search it for stretches of
    ``held_out`` int64 [tokens]; returns records for a result file.

    ConfigError where the history is shorter than a size.
    """
    if len(history) * BLOCK < config.sizes[-1]:
        raise ConfigError(f"a history of {len(history) * BLOCK:,} tokens is too short for {config.sizes[-1]:,}")
    rng = np.random.default_rng(11)
    starts = rng.integers(0, len(held_out) - 32, config.queries)
    queries = [held_out[start : start + 32] for start in starts.tolist()]
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        repository, index = Repository.create(Path(folder) / "memory"), SuffixIndex(Path(folder) / "memory")
        done = 0
        for size in config.sizes:
            progress(f"{size:,} tokens")
            stop = size // BLOCK
            _write(repository, history[done:stop])
            records.append(_measured(repository, index, queries, (stop - done) * BLOCK, config.each))
            done = stop
    ratio = records[-1]["find_us"]["p50"] / records[0]["find_us"]["p50"]
    summary = {"find_ratio_longest_to_shortest": ratio, "bytes_per_token": records[-1]["bytes_per_token"]}
    return {"records": records, "summary": summary}


def _write(repository: Repository, ids: npt.NDArray[np.uint32]) -> None:
    with repository.writer() as writer:
        for start in range(0, len(ids), _DOCUMENT_BLOCKS):
            writer.begin_document(source=f"text:{writer.blocks}")
            writer.append_blocks(ids[start : start + _DOCUMENT_BLOCKS])
            writer.end_document()
        writer.commit("")


def _measured(
    repository: Repository, index: SuffixIndex, queries: Sequence[IntArray], new_tokens: int, each: int
) -> dict[str, Any]:
    snapshot = repository.snapshot()
    began = time.process_time()
    index.ensure(snapshot)
    built = time.process_time() - began
    files = sorted((repository.root / FOLDER).glob("suffix-*.npy"))
    sealed = snapshot.sealed_blocks * BLOCK
    found, spent = _timed(lambda query: index.find(snapshot, query, each=each).places, queries)
    record: dict[str, Any] = {
        "tokens": snapshot.blocks * BLOCK,
        "new_tokens": new_tokens,
        "build_seconds": built,
        "build_tokens_per_second": new_tokens / max(built, 1e-9),
        "runs": len(tiling(sealed // (BLOCK * SEGMENT_BLOCKS))),
        "bytes_per_token": sum(path.stat().st_size for path in files) / sealed if sealed else 0.0,
        "find_us": spent,
        "matches": float(np.mean([len(places) for places in found])),
    }
    record["scan_us"] = _scan(snapshot, queries[:20], found, each)
    if snapshot.blocks <= _UNMERGED_BLOCKS:
        record["unmerged_us"] = _unmerged(snapshot, queries, each)
    return record


def _timed(work: Callable[[IntArray], IntArray], queries: Sequence[IntArray]) -> tuple[list[IntArray], dict[str, float]]:
    """Results, and microseconds of processor time a call after a first round: median and 99th percentile."""
    found, spent = [work(query) for query in queries], []
    for query in queries:
        began = time.process_time_ns()
        work(query)
        spent.append((time.process_time_ns() - began) / 1000)
    return found, {"p50": float(np.median(spent)), "p99": float(np.percentile(spent, 99))}


def _scan(snapshot: Snapshot, queries: Sequence[IntArray], found: Sequence[IntArray], each: int) -> dict[str, float]:
    """Looking at every token instead; InvariantError where that finds other places."""
    ids = snapshot.tokens(0, snapshot.blocks).ravel()
    block = np.arange(len(ids)) // BLOCK
    document = snapshot.documents_at(np.arange(snapshot.blocks))[block]

    def scan(query: IntArray) -> IntArray:
        alive, places = np.arange(1, len(ids)), np.zeros(0, np.int64)
        for back in range(1, LENGTHS[-1] + 1):
            alive = alive[alive >= back]
            alive = alive[(ids[alive - back] == query[-back]) & (document[alive - back] == document[alive])]
            if back in LENGTHS:
                places = np.union1d(places, alive[-each:])
        return places

    looked, spent = _timed(scan, queries)
    for mine, theirs in zip(looked, found, strict=False):
        if not np.array_equal(np.sort(mine), np.sort(theirs)):
            raise InvariantError("the suffix index finds other places than a look at every token")
    return spent


def _unmerged(snapshot: Snapshot, queries: Sequence[IntArray], each: int) -> dict[str, float]:
    """The newest places by name, from a run for each segment."""
    runs: list[Run] = []
    for start in range(0, snapshot.sealed_blocks, SEGMENT_BLOCKS):
        lead, stop = min(start, 1), start + SEGMENT_BLOCKS
        read = np.arange(start - lead, stop)
        parts = grams(snapshot.tokens(start - lead, stop), snapshot.fill(start - lead, stop), snapshot.documents_at(read), lead)
        runs.append(run_of(parts, start, stop))

    def look(query: IntArray) -> IntArray:
        found = [np.zeros(0, np.int64)]
        for number, name in enumerate(names_of(query)):
            room = each
            for run in reversed(runs):
                found.append(run.newest(number, name, snapshot.blocks * BLOCK, room)[0])
                room -= len(found[-1])
                if room <= 0:
                    break
        return np.concatenate(found)

    return _timed(look, queries)[1]
