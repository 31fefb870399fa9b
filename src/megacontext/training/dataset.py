"""Prepared datasets: deterministic 32-token blocks on disk, and windows drawn from them.

One safetensors file a split (memory-mapped when read)::

    ids      uint16|uint32 [N, 32]   token ids; documents start on a block boundary
    fill     uint8 [N]               valid tokens of each block (32 but at a document's end)
    document uint32 [N]              ordinal of the document of each block
    package  uint32 [N]              ordinal of the package of each block

and ``manifest.json`` with the documents, counts and hashes. The same layout that a memory stores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from megacontext.core.node import BLOCK
from megacontext.errors import DatasetError
from megacontext.training.corpus import SPLITS, SourceFile, Split

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """One split in memory; see the module for shapes."""

    ids: npt.NDArray[Any]
    fill: npt.NDArray[np.uint8]
    document: npt.NDArray[np.uint32]
    package: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.fill)

    def tokens(self, start: int, count: int) -> IntArray:
        """The first ``count`` valid tokens from block ``start`` on, filling left out: int64 [≤ count]."""
        stop = min(len(self), start + 2 * (count // BLOCK) + 8)
        ids, fill = self.ids[start:stop], self.fill[start:stop]
        return ids[np.arange(BLOCK) < fill[:, None]][:count].astype(np.int64)

    def histories(self) -> list[IntArray]:
        """The joined documents of each package, filling left out: int64 [tokens] each."""
        starts = np.flatnonzero(np.diff(self.package.astype(np.int64), prepend=-1))
        real = np.arange(BLOCK) < self.fill[:, None]
        edges = [*starts.tolist(), len(self)]
        return [self.ids[a:b][real[a:b]].astype(np.int64) for a, b in pairwise(edges)]


def to_blocks(tokens: Sequence[int], eos: int) -> tuple[IntArray, npt.NDArray[np.uint8]]:
    """Cut a document, closed by ``eos``, into blocks: ids int64 [n, 32] and fill uint8 [n]."""
    closed = np.asarray([*tokens, eos], dtype=np.int64)
    count = -(-len(closed) // BLOCK)
    ids = np.full(count * BLOCK, eos, dtype=np.int64)
    ids[: len(closed)] = closed
    fill = np.full(count, BLOCK, dtype=np.uint8)
    fill[-1] = len(closed) - BLOCK * (count - 1)
    return ids.reshape(count, BLOCK), fill


def write_split(
    files: Sequence[SourceFile],
    encode: Callable[[list[str]], list[list[int]]],
    *,
    eos: int,
    vocab_size: int,
    path: Path,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Tokenise ``files`` into ``path``; returns the split's part of the manifest."""
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    ids_parts, fill_parts, document_parts, package_parts = [], [], [], []
    packages: dict[str, int] = {}
    for first in range(0, len(files), 64):
        chunk = files[first : first + 64]
        for offset, tokens in enumerate(encode([file.text for file in chunk])):
            ids, fill = to_blocks(tokens, eos)
            package = packages.setdefault(chunk[offset].package, len(packages))
            ids_parts.append(ids.astype(dtype))
            fill_parts.append(fill)
            document_parts.append(np.full(len(fill), first + offset, dtype=np.uint32))
            package_parts.append(np.full(len(fill), package, dtype=np.uint32))
        progress(len(chunk))
    tensors = {
        "ids": np.concatenate(ids_parts),
        "fill": np.concatenate(fill_parts),
        "document": np.concatenate(document_parts),
        "package": np.concatenate(package_parts),
    }
    save_file(tensors, str(path))
    return {
        "documents": len(files),
        "packages": sorted(packages),
        "blocks": len(tensors["fill"]),
        "tokens": int(tensors["fill"].sum()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest.json``; the dataset counts as prepared once it is there."""
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared dataset; DatasetError says how to prepare one."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise DatasetError(f"no prepared dataset in {folder}: run python -m tools.prepare_dataset first")
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


def load_split(folder: Path, split: Split) -> Blocks:
    """One split of a prepared dataset; an empty or missing one is a DatasetError."""
    read_manifest(folder)
    if split not in SPLITS:
        raise DatasetError(f"no split named {split}: one of {', '.join(SPLITS)}")
    path = folder / f"{split}.safetensors"
    if not path.is_file():
        raise DatasetError(f"{path} is missing: prepare the dataset again")
    blocks = Blocks(**load_file(str(path)))
    if not len(blocks):
        raise DatasetError(f"the {split} split of {folder} is empty")
    return blocks
