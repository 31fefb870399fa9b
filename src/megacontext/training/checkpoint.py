"""Checkpoints of a run: written beside the old one, moved in place, the last two kept."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from megacontext.errors import CorruptCheckpoint

_KEPT = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``state`` as ``step-00001234.pt``; an interrupted write leaves the older ones intact."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({"step": step, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    for old in checkpoints(folder)[:-_KEPT]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint; CorruptCheckpoint names the file and the one to fall back to."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError) as err:
        others = [p.name for p in checkpoints(path.parent) if p != path]
        hint = f"; delete it to resume from {others[-1]}" if others else ""
        raise CorruptCheckpoint(f"{path} cannot be read ({type(err).__name__}){hint}") from err
    return state
