"""Rows that are costly to compute, kept on disk: computed once and in order, resumable, read as memory maps.

A cache is a folder with one raw little-endian file a field and ``cache.json``: what the rows were made of, their shapes, and
how many are done. That count moves only after the rows are on the disk, so a kill at any moment loses a chunk at most.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext.errors import ConfigError, DatasetError, ModelMismatch, StorageFull

MANIFEST = "cache.json"
LIMIT = 2_000_000_000
"""Bytes that a cache may take: 2 GB."""

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One array of a cache: the type of its values and the shape of a row."""

    dtype: type[np.generic]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes a row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def cached_rows(
    folder: Path,
    *,
    identity: Mapping[str, str | int],
    fields: Mapping[str, Field],
    rows: int,
    compute: Callable[[int, int], Arrays],
    chunk: int,
    limit_bytes: int = LIMIT,
    progress: Callable[[int], None] = lambda _: None,
) -> Arrays:
    """The arrays [rows, …] of ``folder``, read-only; what is missing is computed by ``compute(first, stop)``, ``chunk`` rows at
    a time, each array [stop − first, …].

    ``identity`` names what the rows were made of (fingerprints): a folder made of something else is a ModelMismatch that
    says what differs. ConfigError where it would take more than ``limit_bytes`` (2 GB at most), DatasetError where
    files are cut, StorageFull where the disk is; what was done is kept. ``progress`` is told of rows that are there.
    """
    require_room(folder, fields, rows, limit_bytes)
    described = {
        "identity": dict(identity),
        "rows": rows,
        "fields": {name: [np.dtype(field.dtype).name, list(field.shape)] for name, field in fields.items()},
    }
    done = _resume(folder, described, fields)
    progress(done)
    while done < rows:
        stop = min(done + chunk, rows)
        made = compute(done, stop)
        for name, field in fields.items():
            _write(folder / f"{name}.bin", made[name], field, done, stop)
        _describe(folder, described | {"done": stop})
        progress(stop - done)
        done = stop
    return {
        name: np.memmap(folder / f"{name}.bin", dtype=field.dtype, mode="r", shape=(rows, *field.shape))
        for name, field in fields.items()
    }


def require_room(folder: Path, fields: Mapping[str, Field], rows: int, limit_bytes: int) -> None:
    """ConfigError unless there are rows and they fit the limit; says how many would."""
    if not rows:
        raise DatasetError(f"there is nothing to keep in {folder}: no rows")
    if limit_bytes > LIMIT:
        raise ConfigError(f"a cache may take {LIMIT:,} bytes at most, not {limit_bytes:,}")
    a_row = sum(field.row_bytes for field in fields.values())
    if rows * a_row > limit_bytes:
        raise ConfigError(
            f"{folder} would take {rows * a_row:,} bytes, but {limit_bytes:,} are allowed: {limit_bytes // a_row:,} of its "
            f"{rows:,} rows fit, so cut fewer slices (a larger stride) or shorter horizons"
        )


def _resume(folder: Path, described: dict[str, Any], fields: Mapping[str, Field]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    if not path.is_file():
        return 0
    try:
        held = json.loads(path.read_text())
        done = int(held.pop("done"))
        identity = dict(held["identity"])
    except (ValueError, TypeError, KeyError) as err:
        raise DatasetError(f"{path} is damaged: delete the folder, it is computed again") from err
    remedy = "name another folder, or delete it"
    for name, wanted in described["identity"].items():
        if identity.get(name) != wanted:
            had = str(identity.get(name, "none"))
            raise ModelMismatch(f"{folder} was made with another {name} ({had[:12]}, not {str(wanted)[:12]}): {remedy}")
    if held != described:
        raise ModelMismatch(f"{folder} holds {held['rows']} rows of {held['fields']}, not what is asked for: {remedy}")
    for name, field in fields.items():
        data = folder / f"{name}.bin"
        if not data.is_file() or data.stat().st_size < done * field.row_bytes:
            raise DatasetError(f"{data} is cut: delete {folder}, it is computed again")
    return done


def _write(path: Path, values: npt.NDArray[Any], field: Field, first: int, stop: int) -> None:
    if values.shape != (stop - first, *field.shape):
        raise AssertionError(f"{path.name}: {values.shape} is not {(stop - first, *field.shape)}")
    data = np.ascontiguousarray(values, dtype=np.dtype(field.dtype).newbyteorder("<"))
    try:
        # Written, not mapped: a full disk is an error then, and no signal that ends the process.
        with path.open("r+b" if path.is_file() else "wb") as file:
            file.seek(first * field.row_bytes)
            file.write(data.data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as err:
        raise StorageFull(f"{path} could not be written ({err.strerror}): free some space and start again") from err


def _describe(folder: Path, manifest: dict[str, Any]) -> None:
    partial = folder / f"{MANIFEST}.{os.getpid()}"
    partial.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    partial.replace(folder / MANIFEST)
