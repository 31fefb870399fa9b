"""Where models lie, and what a folder says of itself before anything is loaded. Light: no tensor library."""

from __future__ import annotations

import json
from pathlib import Path

BUNDLED = "bundled"
"""The model name that stands for the checkpoint that ships with the package."""


def bundled_folder() -> Path:
    """Where the shipped checkpoint lies."""
    return Path(__file__).parent.parent / "checkpoints" / "code-3m"


def folder_of(model: str | Path) -> Path:
    """The folder of a model that is one; a hub id gives a path where nothing is."""
    return bundled_folder() if str(model) == BUNDLED else Path(model)


def gist_kind(model: str | Path) -> str:
    """The kind of a bundle's GistNet as its configuration names it, '' without one."""
    try:
        facts = json.loads((folder_of(model) / "gistnet" / "config.json").read_text(encoding="utf-8"))
        return str(facts.get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return ""
