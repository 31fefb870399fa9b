"""Checkpoints of a run: written beside the old one, moved in place; the last two and the best are kept."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from megacontext.errors import CorruptCheckpoint

_KEPT = 2
_PARTS = {"step": int, "module": dict, "optimizers": list}


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps lies."""
    return folder / f"step-{step:08d}.pt"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: Collection[int] = ()) -> Path:
    """Write ``state`` as ``step-00001234.pt``; an interrupted write leaves the older ones intact.

    The last two checkpoints stay, and those of the steps in ``keep``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(folder, step)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({"step": step, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync(folder)
    kept = {checkpoint_path(folder, each) for each in keep}
    for old in checkpoints(folder)[:-_KEPT]:
        if old not in kept:
            old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU; CorruptCheckpoint names the file and the one to fall back to.

    ``step`` int, ``module`` a state dict, ``optimizers`` a list of them are there; more may be.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError, KeyError) as err:
        raise CorruptCheckpoint(f"{path} cannot be read ({type(err).__name__}){_fallback(path)}") from err
    if not isinstance(state, dict) or not all(isinstance(state.get(name), kind) for name, kind in _PARTS.items()):
        raise CorruptCheckpoint(f"{path} is no checkpoint of a training run{_fallback(path)}")
    return state


def _fallback(path: Path) -> str:
    others = [p.name for p in checkpoints(path.parent) if p.name < path.name]
    return f"; delete it to resume from {others[-1]}" if others else "; delete it to start again"


def _sync(folder: Path) -> None:
    """Make the renaming durable, where folders can be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
