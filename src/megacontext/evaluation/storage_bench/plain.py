"""The physical limit that a memory is measured against: flat files without a name, a checksum or a history.

Each reading and each writing is done in the way that is best for it: reads come from one file with an array for each
column, mapped into memory; an append is one write of the same bytes at the end of a log, and one sync.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.evaluation.storage_bench.content import Batch
from megacontext.storage import files
from megacontext.storage.gists import nodes
from megacontext.storage.tensors import Array


class PlainFile:
    """Columns of ``blocks`` blocks in one file, each at its place from the start."""

    def __init__(self, path: Path, blocks: int, gist: tuple[int, int]) -> None:
        self.path = path
        self._at: dict[str, int] = {}
        self._forms: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        self._filled: dict[str, int] = {}
        size = 0
        columns: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {"ids": (np.uint32, (blocks, BLOCK))}
        lod = 1
        while nodes(blocks, lod):
            columns[f"lod{lod}"] = np.float16, (nodes(blocks, lod), *gist)
            lod += 1
        columns |= {name: (np.uint32, (blocks,)) for name in ("chars", "lines", "doc")} | {"fill": (np.uint8, (blocks,))}
        for name, (dtype, shape) in columns.items():
            self._forms[name] = np.dtype(dtype), shape
            self._at[name] = size
            self._filled[name] = 0
            size += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        files.create(path, b"")
        self._descriptor = os.open(path, os.O_RDWR)
        os.ftruncate(self._descriptor, size)
        self._map: mmap.mmap | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all columns, without what fills their last pages."""
        return sum(int(np.prod(shape)) * dtype.itemsize for dtype, shape in self._forms.values())

    def write(self, batch: Batch) -> None:
        """Puts the next rows of every column in their places, unsynced."""
        for name, rows in batch.columns().items():
            data = np.ascontiguousarray(rows).data.cast("B")
            os.pwrite(self._descriptor, data, self._at[name] + self._filled[name])
            self._filled[name] += len(data)

    def sync(self) -> None:
        """Returns once everything is on the disk."""
        files.sync(self._descriptor, self.path)

    def open(self, *, scattered: bool) -> dict[str, Array]:
        """The columns, mapped; told that scattered reads follow, the system does not read ahead."""
        self._map = mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ)
        if scattered:
            self._map.madvise(mmap.MADV_RANDOM)
        return {
            name: np.frombuffer(self._map, dtype, int(np.prod(shape)), self._at[name]).reshape(shape)
            for name, (dtype, shape) in self._forms.items()
        }

    def close(self) -> None:
        """Lets the file go."""
        os.close(self._descriptor)


class PlainLog:
    """A file that rows are appended to."""

    def __init__(self, path: Path) -> None:
        files.create(path, b"")
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)

    def append(self, data: bytes) -> None:
        """Returns once the bytes are on the disk."""
        files.write(self._descriptor, data, self._path)
        files.sync(self._descriptor, self._path)

    def close(self) -> None:
        """Lets the file go."""
        os.close(self._descriptor)


def plain_replace(path: Path, data: bytes) -> None:
    """What a durable change of one name costs at least: a small file put in the place of another."""
    files.replace_file(path, data)


def drop_from_page_cache(folder: Path) -> None:
    """Makes the next reads of every file below come from the disk. What is still mapped somewhere stays."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
