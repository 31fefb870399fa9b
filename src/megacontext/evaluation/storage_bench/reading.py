"""Reading side by side: scattered and contiguous rows in three states, opening, and what it all takes on the disk.

*Warm*: read before by this process. *First*: in the system's page cache, but not yet read by this process, which checks
the hash of every object that it meets. *Cold*: on the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from megacontext.evaluation.storage_bench.config import CONTIGUOUS, SCATTERED, StorageBenchConfig
from megacontext.evaluation.storage_bench.plain import PlainFile, drop_from_page_cache
from megacontext.evaluation.storage_bench.timing import Thunk, compared, figures, in_turns
from megacontext.storage import Repository, Snapshot
from megacontext.storage.tensors import I64, Array

Progress = Callable[[], None]
Records = list[dict[str, Any]]
COLUMNS = {"gists": "lod1", "tokens": "ids"}
"""What is read: the column's name here and in the plain file."""


class _Memory:
    """The reads of a snapshot under the names of the columns."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._layer = snapshot.layer()

    def at(self, column: str, index: I64) -> Array:
        return self._layer.gists_at(1, index) if column == "gists" else self._snapshot.tokens_at(index)

    def range(self, column: str, start: int, stop: int) -> Array:
        return self._layer.gists(1, start, stop) if column == "gists" else self._snapshot.tokens(start, stop)


def warm(repository: Repository, plain: PlainFile, config: StorageBenchConfig, progress: Progress) -> Records:
    """Reads of what this process has read before."""
    random = np.random.default_rng(config.seed)
    memory, flat = _Memory(repository.snapshot()), plain.open(scattered=True)
    everything = np.arange(config.blocks)
    records = []
    for column, name in COLUMNS.items():
        rows = flat[name]
        for low in range(0, config.blocks, CONTIGUOUS):
            part = everything[low : low + CONTIGUOUS]
            if not np.array_equal(memory.at(column, part).view(np.uint8), rows[part].view(np.uint8)):
                raise AssertionError("the memory and the plain file differ")

        def scattered(column: str = column) -> Thunk:
            index = random.integers(0, config.blocks, SCATTERED)
            return lambda: memory.at(column, index)

        def plain_scattered(rows: Array = rows) -> Thunk:
            index = random.integers(0, config.blocks, SCATTERED)
            return lambda: rows[index]

        def plain_taken(rows: Array = rows) -> Thunk:
            index = random.integers(0, config.blocks, SCATTERED)
            return lambda: rows.take(index, axis=0)

        ours, theirs, taken = in_turns([scattered, plain_scattered, plain_taken], config.reads, progress)
        record = compared("scattered read", ours, theirs, column=column, rows=SCATTERED, state="warm")
        # numpy's quickest way into one flat array, which needs all of it in one place.
        records.append({**record, "plain_take": figures(taken)})

        def contiguous(column: str = column) -> Thunk:
            start = int(random.integers(0, config.blocks - CONTIGUOUS + 1))
            return lambda: memory.range(column, start, start + CONTIGUOUS)

        def plain_contiguous(rows: Array = rows) -> Thunk:
            start = int(random.integers(0, config.blocks - CONTIGUOUS + 1))
            return lambda: rows[start : start + CONTIGUOUS].copy()

        both = in_turns([contiguous, plain_contiguous], config.reads, progress)
        records.append(compared("contiguous read", *both, column=column, rows=CONTIGUOUS, state="warm"))
    return records


def unverified(repository: Repository, plain: PlainFile, config: StorageBenchConfig, progress: Progress) -> Records:
    """Reads of what this process has not read yet, from the page cache and from the disk."""
    random = np.random.default_rng(config.seed + 1)
    column, name = "gists", COLUMNS["gists"]
    records = []
    for state in ("first", "cold"):

        def dropped(state: str = state) -> None:
            if state == "cold":
                drop_from_page_cache(repository.root)
                drop_from_page_cache(plain.path.parent)

        def scattered() -> Thunk:
            dropped()
            memory, index = _Memory(Repository.open(repository.root).snapshot()), random.integers(0, config.blocks, SCATTERED)
            return lambda: memory.at(column, index)

        def plain_scattered() -> Thunk:
            dropped()
            rows, index = plain.open(scattered=True)[name], random.integers(0, config.blocks, SCATTERED)
            return lambda: rows[index]

        both = in_turns([scattered, plain_scattered], config.cold_reads, progress)
        records.append(compared("scattered read", *both, column=column, rows=SCATTERED, state=state))

        def contiguous() -> Thunk:
            dropped()
            memory = _Memory(Repository.open(repository.root).snapshot())
            start = int(random.integers(0, config.blocks - CONTIGUOUS + 1))
            return lambda: memory.range(column, start, start + CONTIGUOUS)

        def plain_contiguous() -> Thunk:
            dropped()
            rows, start = plain.open(scattered=False)[name], int(random.integers(0, config.blocks - CONTIGUOUS + 1))
            return lambda: rows[start : start + CONTIGUOUS].copy()

        both = in_turns([contiguous, plain_contiguous], config.cold_reads, progress)
        records.append(compared("contiguous read", *both, column=column, rows=CONTIGUOUS, state=state))
    return records


def opening(repository: Repository, plain: PlainFile, config: StorageBenchConfig, progress: Progress) -> Records:
    """From a path to a snapshot whose tokens and gists can be read."""

    def ours() -> Thunk:
        return lambda: _Memory(Repository.open(repository.root).snapshot())

    def theirs() -> Thunk:
        return lambda: plain.open(scattered=True)

    both = in_turns([ours, theirs], config.opens, progress)
    return [compared("open", *both, blocks=config.blocks)]


def sizes(repository: Repository, plain: PlainFile, config: StorageBenchConfig) -> Records:
    """Bytes in files against bytes of the arrays that were handed over, provenance columns included."""
    found = [path.stat() for path in repository.root.rglob("*") if path.is_file()]
    total = sum(each.st_size for each in found)
    return [
        {
            "what": "size",
            "blocks": config.blocks,
            "files": len(found),
            "memory": {"bytes": total, "bytes_on_disk": sum(512 * each.st_blocks for each in found)},
            "plain": {"bytes": plain.nbytes},
            "bytes_per_token": round(total / config.blocks / 32, 3),
            "ratio": round(total / plain.nbytes, 5),
        }
    ]
