"""Result files: what was measured, as it was written, by kind and by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacontext.errors import DatasetError

Result = Mapping[str, Any]
KINDS = ("quality", "capacity", "recall", "speed", "storage", "suffix", "focus", "reuse", "run")


@dataclass(frozen=True, kw_only=True)
class Results:
    """``by_kind``: kind → name (the file's, without ``.json``) → its content; kinds without a file are absent."""

    by_kind: Mapping[str, Mapping[str, Result]]

    def of(self, kind: str) -> Mapping[str, Result]:
        """All results of a kind, by name; empty where there are none."""
        return self.by_kind.get(kind, {})


def load_results(folder: Path) -> Results:
    """Every ``*.json`` of ``folder`` and of its subfolder ``runs``, sorted by name.

    DatasetError for a file that is not JSON, has no known ``kind``, or has the name of another of its kind.
    """
    found: dict[str, dict[str, Result]] = {}
    for place in (folder, folder / "runs"):
        for path in sorted(place.glob("*.json")):
            content = _read(path)
            same_kind = found.setdefault(content["kind"], {})
            if path.stem in same_kind:
                raise DatasetError(f"two results of kind {content['kind']} are called {path.stem}: rename {path}")
            same_kind[path.stem] = content
    return Results(by_kind={kind: dict(sorted(named.items())) for kind, named in found.items()})


def chosen_figures(run: Result) -> dict[str, float]:
    """Validation figures of the weights that a run exports, and ``real``: recovered by true minus by swapped gists."""
    chosen = run.get("chosen", {}).get("figures", {})
    found = {name: float(value) for name, value in chosen.items() if value is not None}
    if "recovered/gist" in found and "recovered/swapped" in found:
        found["real"] = found["recovered/gist"] - found["recovered/swapped"]
    return found


def _read(path: Path) -> Result:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise DatasetError(f"{path} is not valid JSON: {err}") from err
    if not isinstance(content, dict) or content.get("kind") not in KINDS:
        raise DatasetError(f"{path} is no result: its 'kind' must be one of {', '.join(KINDS)}")
    if "." in path.stem:
        raise DatasetError(f"{path}: a result's name must have no dot, since dots separate the fields of a placeholder")
    return content
