"""Where a run's figures go: always a JSON-lines file, and trackio (local, offline) where asked for."""

from __future__ import annotations

import json
import os
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
        try:
            import trackio
        except ImportError as err:
            raise ConfigError("tracker: trackio needs the extra: pip install 'megacontext[train]'") from err
        self._trackio = trackio
        trackio.init(project="megacontext", name=folder.name, config=config, embed=False)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Hand the figures on."""
        self._trackio.log(values, step=step)

    def close(self) -> None:
        """Finish the tracker's run."""
        self._trackio.finish()
