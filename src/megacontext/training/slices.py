"""Slices of a prepared split: a long context and the tokens that follow it, for training on whole windows.

One safetensors file a split, read as memory maps::

    ids       uint16|uint32 [S, N, 32]   the context: N = context_length / 32 blocks, aligned as in the split
    fill      uint8 [S, N]               real tokens of each block
    document  uint32 [S, N]              ordinal of the document of each block
    horizon   uint16|uint32 [S, H]       the next H real tokens after the context
    start     int64 [S]                  the first block of the slice in its split

A slice lies inside one package, context and horizon both; it may cross from one document into the next. Slices start
every ``stride`` tokens from the first block of a package on. The same split and settings give the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext.core.node import BLOCK
from megacontext.errors import ConfigError, DatasetError
from megacontext.training.corpus import SPLITS, Split
from megacontext.training.dataset import (
    Blocks,
    IntArray,
    hash_file,
    load_split,
    mapped,
    read_manifest,
    write_manifest,
    write_tensors,
)

MANIFEST = "slices.json"


@dataclass(frozen=True, kw_only=True)
class SliceConfig:
    """All three in tokens; ``context_length`` and ``stride`` are multiples of 32."""

    context_length: int = 4096
    stride: int = 2048
    horizon: int = 64

    def __post_init__(self) -> None:
        for name in ("context_length", "stride"):
            value = getattr(self, name)
            if value <= 0 or value % BLOCK:
                raise ConfigError(f"{name} must be a positive multiple of {BLOCK} tokens, not {value}")
        if self.horizon < 1:
            raise ConfigError(f"horizon must be at least 1 token, not {self.horizon}")

    @property
    def positions(self) -> int:
        """What a model needs to read a slice whole: the last token is only predicted."""
        return self.context_length + self.horizon - 1

    def require_range(self, positions: int) -> None:
        """ConfigError unless a base that was made for so many positions can read a slice whole."""
        if self.positions > positions:
            fitting = max(0, positions + 1 - self.horizon) // BLOCK * BLOCK
            raise ConfigError(
                f"slices of {self.context_length} tokens and {self.horizon} more take {self.positions} positions, but the "
                f"base was made for {positions}: choose a context length of {fitting}"
            )


@dataclass(frozen=True, kw_only=True)
class Slices:
    """The slices of one split, memory-mapped; see the module for shapes. ``sha256`` names the file that they are in."""

    sha256: str
    ids: npt.NDArray[Any]
    fill: npt.NDArray[np.uint8]
    document: npt.NDArray[np.uint32]
    horizon: npt.NDArray[Any]
    start: IntArray

    def __len__(self) -> int:
        return len(self.start)


def slice_starts(blocks: Blocks, config: SliceConfig) -> IntArray:
    """The first block of every slice that a split has room for, int64 [S]."""
    length, step = config.context_length // BLOCK, config.stride // BLOCK
    edges = np.flatnonzero(np.diff(blocks.package.astype(np.int64), prepend=-1, append=-1))
    before = np.concatenate([[0], np.cumsum(blocks.fill, dtype=np.int64)])
    found = [np.zeros(0, dtype=np.int64)]
    for first, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        starts = np.arange(first, stop - length, step, dtype=np.int64)
        found.append(starts[before[stop] - before[starts + length] >= config.horizon])
    return np.concatenate(found)


def write_slices(dataset: Path, output: Path, config: SliceConfig) -> dict[str, Any]:
    """Cut every split of a prepared ``dataset``; returns the manifest that is written last, as ``slices.json``.

    Splits without a package that is long enough give no file and a count of 0; DatasetError where no split has one.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST).unlink(missing_ok=True)
    splits = {
        split: _write_split(load_split(dataset, split), output / f"slices-{split}.safetensors", config) for split in SPLITS
    }
    if not any(part["slices"] for part in splits.values()):
        needed = config.context_length + config.horizon
        raise DatasetError(f"no package of {dataset} holds {needed} tokens: add longer documents or choose a shorter context")
    manifest = {
        "config": asdict(config),
        "dataset": {split: part["sha256"] for split, part in read_manifest(dataset)["splits"].items()},
        "splits": splits,
    }
    write_manifest(output, manifest, name=MANIFEST)
    return manifest


def load_slices(folder: Path, split: Split) -> Slices:
    """The slices of one split, mapped and not read; DatasetError where there are none."""
    path = folder / f"slices-{split}.safetensors"
    if not (folder / MANIFEST).is_file() or not path.is_file():
        raise DatasetError(f"no slices of the {split} split in {folder}: run python -m tools.prepare_dataset --slices")
    part = json.loads((folder / MANIFEST).read_text())["splits"][split]
    try:
        return Slices(sha256=part["sha256"], **mapped(path))
    except TypeError as err:
        raise DatasetError(
            f"{path} holds other tensors than slices: run python -m tools.prepare_dataset --slices again"
        ) from err


def _write_split(blocks: Blocks, path: Path, config: SliceConfig) -> dict[str, Any]:
    starts = slice_starts(blocks, config)
    path.unlink(missing_ok=True)
    if not len(starts):
        return {"slices": 0}
    rows = starts[:, None] + np.arange(config.context_length // BLOCK)
    following = [blocks.tokens(int(stop), config.horizon) for stop in rows[:, -1] + 1]
    tensors = {
        "ids": blocks.ids[rows],
        "fill": blocks.fill[rows],
        "document": blocks.document[rows],
        "horizon": np.stack(following).astype(blocks.ids.dtype),
        "start": starts,
    }
    write_tensors(path, tensors)
    return {"slices": len(starts), "sha256": hash_file(path)}
