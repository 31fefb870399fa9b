"""Where a run's figures go: always a JSON-lines file, and trackio or wandb (both offline by default) where asked for."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from megacontext.errors import ConfigError


class MetricSink(Protocol):
    """Receives one record of figures a step."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record ``values`` at ``step``."""

    def close(self) -> None:
        """Flush; the sink is not used afterwards."""


class JsonLines:
    """Appends to ``metrics.jsonl``; a resumed run cuts what lies after its checkpoint."""

    def __init__(self, folder: Path, first_step: int) -> None:
        path = folder / "metrics.jsonl"
        kept: list[str] = []
        if path.is_file():
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n") and json.loads(line)["step"] < first_step:
                    kept.append(line)
        path.write_text("".join(kept))
        self._file = path.open("a")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append one line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Trackio:
    """The wandb-shaped local tracker; its database stays in the run's own folder."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
        self._trackio = _tracker("trackio", extra="train")
        self._trackio.init(project=_PROJECT, name=folder.name, config=config, embed=False, resume="allow", auto_log_cpu=False)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Hand the figures on."""
        self._trackio.log(values, step=step)

    def close(self) -> None:
        """Finish the tracker's run."""
        self._trackio.finish()


class Wandb:
    """Weights & Biases; offline, in the run's own folder, unless ``WANDB_MODE`` says otherwise."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        wandb = _tracker("wandb", extra="wandb")
        mode = os.environ.get("WANDB_MODE", "offline")
        # The same name for every leg of a run, so that their records come together.
        name = f"{folder.name}-{hashlib.blake2b(str(folder.resolve()).encode(), digest_size=4).hexdigest()}"
        resume = "allow" if mode == "online" else None
        self._run = wandb.init(project=_PROJECT, id=name, resume=resume, config=config, dir=str(folder), mode=mode)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Hand the figures on."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Finish the tracker's run."""
        self._run.finish()


_PROJECT = "megacontext"
_TRACKERS: dict[str, Callable[[Path, dict[str, Any]], MetricSink]] = {"trackio": Trackio, "wandb": Wandb}


def open_sinks(tracker: str, folder: Path, config: dict[str, Any], first_step: int) -> list[MetricSink]:
    """The JSON-lines file, and the tracker where one is asked for (``none``, ``trackio``, ``wandb``).

    ConfigError where its package is not installed.
    """
    also: list[MetricSink] = [_TRACKERS[tracker](folder, config)] if tracker != "none" else []
    return [JsonLines(folder, first_step), *also]


def _tracker(name: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise ConfigError(f"tracker: {name} needs the extra: pip install 'megacontext[{extra}]'") from err
