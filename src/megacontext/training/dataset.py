"""Prepared datasets: deterministic 32-token blocks on disk, and windows drawn from them.

One safetensors file a split, read as memory maps::

    ids      uint16|uint32 [N, 32]   token ids; documents start on a block boundary
    fill     uint8 [N]               valid tokens of each block (32 but at a document's end)
    document uint32 [N]              ordinal of the document of each block
    package  uint32 [N]              ordinal of the package of each block

``documents.jsonl`` names every document (split, ordinal, package, name, hash of its text, first block, blocks, tokens),
``manifest.json`` holds settings, counts and the hashes of all files; it is written last. Blocks have the layout that a
memory stores. The documents of one package follow each other: together they are one repository-level history.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from megacontext.core.node import BLOCK
from megacontext.errors import DatasetError
from megacontext.training.corpus import SPLITS, SourceFile, Split

IntArray = npt.NDArray[np.int64]
MANIFEST = "manifest.json"
DOCUMENTS = "documents.jsonl"
_DTYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I64": np.int64}


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
        stop = start + 2 * (count // BLOCK) + 8
        while stop < len(self) and self.fill[start:stop].sum() < count:
            stop += stop - start
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
    split: Split,
    files: Sequence[SourceFile],
    encode: Callable[[list[str]], list[list[int]]],
    *,
    eos: int,
    vocab_size: int,
    path: Path,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Tokenise ``files`` into ``path``; returns the split's part of the manifest, and a record a document."""
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    ids_parts, fill_parts, document_parts, package_parts = [], [], [], []
    packages: dict[str, int] = {}
    documents: list[dict[str, Any]] = []
    first_block = 0
    for first in range(0, len(files), 64):
        chunk = files[first : first + 64]
        for file, tokens in zip(chunk, encode([file.text for file in chunk]), strict=True):
            ids, fill = to_blocks(tokens, eos)
            package = packages.setdefault(file.package, len(packages))
            ids_parts.append(ids.astype(dtype))
            fill_parts.append(fill)
            document_parts.append(np.full(len(fill), len(documents), dtype=np.uint32))
            package_parts.append(np.full(len(fill), package, dtype=np.uint32))
            documents.append(
                {
                    "split": split,
                    "document": len(documents),
                    "package": file.package,
                    "name": file.name,
                    "sha256": hashlib.sha256(file.text.encode()).hexdigest(),
                    "block": first_block,
                    "blocks": len(fill),
                    "tokens": int(fill.sum()),
                }
            )
            first_block += len(fill)
        progress(len(chunk))
    tensors = {
        "ids": np.concatenate(ids_parts),
        "fill": np.concatenate(fill_parts),
        "document": np.concatenate(document_parts),
        "package": np.concatenate(package_parts),
    }
    write_tensors(path, tensors)
    part = {
        "documents": len(files),
        "packages": sorted(packages),
        "blocks": len(tensors["fill"]),
        "tokens": int(tensors["fill"].sum()),
        "sha256": hash_file(path),
    }
    return part, documents


def write_documents(folder: Path, documents: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Write ``documents.jsonl``; returns what the manifest says about it."""
    path = folder / DOCUMENTS
    path.write_text("".join(json.dumps(each, sort_keys=True) + "\n" for each in documents), encoding="utf-8")
    return {"sha256": hash_file(path)}


def read_documents(folder: Path, split: Split) -> list[dict[str, Any]]:
    """The documents of one split, in the order of their ordinals."""
    read_manifest(folder)
    path = folder / DOCUMENTS
    if not path.is_file():
        raise DatasetError(f"{path} is missing: prepare the dataset again")
    records = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [record for record in records if record["split"] == split]


def write_manifest(folder: Path, manifest: dict[str, Any], *, name: str = MANIFEST) -> None:
    """Write a manifest, whole or not at all; the dataset counts as prepared once it is there."""
    partial = folder / f"{name}.partial"
    partial.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    partial.replace(folder / name)


def write_tensors(path: Path, tensors: dict[str, npt.NDArray[Any]]) -> None:
    """Write a safetensors file beside its place and move it there: whoever has mapped an older one keeps that."""
    partial = path.with_name(f"{path.name}.partial")
    save_file(tensors, str(partial))
    partial.replace(path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared dataset; DatasetError says how to prepare one."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DatasetError(f"no prepared dataset in {folder}: run python -m tools.prepare_dataset first")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        manifest["splits"]
    except (ValueError, TypeError, KeyError) as err:
        raise DatasetError(f"{path} is damaged: prepare the dataset again") from err
    return manifest


def load_split(folder: Path, split: Split) -> Blocks:
    """One split of a prepared dataset; an empty or missing one is a DatasetError."""
    read_manifest(folder)
    if split not in SPLITS:
        raise DatasetError(f"no split named {split}: one of {', '.join(SPLITS)}")
    path = folder / f"{split}.safetensors"
    if not path.is_file():
        raise DatasetError(f"{path} is missing: prepare the dataset again")
    try:
        blocks = Blocks(**mapped(path))
    except TypeError as err:
        raise DatasetError(f"{path} holds other tensors than a prepared split: prepare the dataset again") from err
    if not len(blocks):
        raise DatasetError(f"the {split} split of {folder} is empty")
    return blocks


def mapped(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a safetensors file as read-only maps of it; DatasetError where it is cut or damaged."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size) if size < path.stat().st_size else b"")
        header.pop("__metadata__", None)
        return {name: _map_tensor(path, 8 + size, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise DatasetError(f"{path} is cut or damaged: prepare the dataset again") from err


def _map_tensor(path: Path, first: int, entry: dict[str, Any]) -> npt.NDArray[Any]:
    shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
    if not all(shape):
        return np.zeros(shape, dtype=dtype)  # nothing can be mapped there
    return np.memmap(path, dtype=dtype, mode="r", offset=first + entry["data_offsets"][0], shape=shape)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def surprisal(train: Blocks, vocab_size: int) -> npt.NDArray[np.float32]:
    """-log of each token's frequency in the training split (one added to each count): [V], nats."""
    counts = np.bincount(train.ids[np.arange(BLOCK) < train.fill[:, None]], minlength=vocab_size) + 1.0
    result: npt.NDArray[np.float32] = -np.log(counts / counts.sum()).astype(np.float32)
    return result
