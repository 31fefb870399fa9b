"""The two functions that users begin with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megacontext.engine.memory import Memory
from megacontext.errors import MemoryNotFound


def init(path: str | Path, *, model: str | Path = "bundled") -> Memory:
    """Make an empty memory in a new or empty folder.

    ``model``: ``"bundled"`` (the checkpoint that ships), a folder, or a hub id for ``from_pretrained``.
    Raises MemoryExists, ModelNotFound.
    """
    return Memory.create(path, model=model)


def open(path: str | Path, *, model: str | Path | None = None, create: bool = True, deny: Sequence[str] = ()) -> Memory:
    """Open the memory at ``path``; make it if there is none, unless ``create`` is False.

    ``model`` as for ``init``; None means the one that the memory was made for. ``deny`` names policy labels: what carries
    one of them cannot be had from this memory, and what asks for it raises AccessDenied. Raises MemoryNotFound,
    ModelMismatch (when the models are first needed).
    """
    try:
        return Memory.open(path, model=model, deny=deny)
    except MemoryNotFound:
        if not create:
            raise
        made = Memory.create(path, model=model if model is not None else "bundled")
        return Memory.open(path, model=model, deny=deny) if deny else made
