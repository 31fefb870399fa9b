"""megacontext env: versions, machine and places, for bug reports."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from megacontext.cli import output, place
from megacontext.cli.verb import Call
from megacontext.errors import MegaContextError

_PACKAGES = ("numpy", "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "pydantic", "typer", "rich")
_VARIABLES = (
    place.VARIABLE,
    "MEGACONTEXT_DEBUG",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "TOKENIZERS_PARALLELISM",
)


def env(call: Call) -> None:
    """Print versions, machine and places: please add it to a bug report. Holds no text of yours."""
    value = {
        "versions": _versions(),
        "machine": _machine(),
        "torch": _torch(),
        "bundled": _bundled(),
        "memory": _memory(call),
        "caches": _caches(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    call.show(value, lambda: _print(value))


def _versions() -> dict[str, str]:
    import sqlite3
    from importlib import metadata

    import megacontext

    versions = {"megacontext": megacontext.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {**versions, "sqlite": sqlite3.sqlite_version}


def _machine() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": platform.platform(),
        "architecture": platform.machine(),
        "executable": sys.executable,
        "cpus": os.cpu_count(),
        "usable_cpus": usable,
        "memory_gib": _memory_gib(),
        "encoding": f"stdout {sys.stdout.encoding}, files {sys.getfilesystemencoding()}",
    }


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _torch() -> dict[str, Any]:
    """What torch finds; the reason, where it cannot even be imported: that is what a report may be about."""
    try:
        import torch
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    cuda = torch.cuda.is_available()
    return {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
    }


def _bundled() -> dict[str, Any]:
    from megacontext.engine.bundle import bundled_folder

    folder = bundled_folder()
    parts = [name for name in ("base", "gistnet", "lensnet") if (folder / name / "config.json").is_file()]
    return {"folder": str(folder), "present": "base" in parts, "parts": parts}


def _memory(call: Call) -> dict[str, Any]:
    try:
        status = call.memory().status()
    except (MegaContextError, OSError) as error:
        return {"error": " ".join(str(error).split())}
    return {"path": status.path, "model": status.model, "documents": status.documents, "blocks": status.blocks}


def _caches() -> dict[str, Any]:
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    return {"hub": str(hub), "hub_exists": hub.is_dir(), "search index": "index/ inside each memory; may be deleted"}


def _print(value: dict[str, dict[str, Any]]) -> None:
    for title, facts in value.items():
        if not facts:
            continue
        output.line(title)
        output.facts((f"  {name}", _plain(fact)) for name, fact in facts.items())


def _plain(fact: Any) -> str:
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    return ", ".join(fact) or "none" if isinstance(fact, list) else str(fact)
