"""Runs that were compared with each other: what differed, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import PydanticUndefined

from megacontext.training.config import RunConfig
from tools.report.files import Result, chosen_figures
from tools.report.markdown import figure_text, table
from tools.report.plots import Curve

KINDS = ("base", "native", "gist", "lens", "other")
COLUMNS = {
    "full": "NLL full",
    "drop": "NLL drop",
    "drop_minus_full": "drop − full",
    "gist": "NLL gist",
    "recovered/recency": "recency",
    "recovered/gist": "recovered",
    "recovered/swapped": "swapped",
    "real": "real",
    "recovered_far_copy/gist": "recovered, far-copy",
    "recovered_far_copy/swapped": "swapped, far-copy",
    "share_of_oracle/lens": "share of oracle",
    "share_of_oracle/suffix": "suffix match",
    "share_of_oracle/recency": "recency",
    "share_of_oracle/random": "chance",
}
"""Figures of the exported weights, in the order of columns; those that no run of a group has are left out."""
INCIDENTAL = ("output", "threads", "device", "tracker", "checkpoint_every_s", "evaluate_every", "stop_after_s", "accelerate")
"""Fields that say where and how a run ran, not what it was."""


def group_tables(runs: Sequence[Result]) -> str:
    """A table for the runs of each kind: a base is not compared with a GistNet."""
    kinds = [kind for kind in KINDS if any(run["trains"] == kind for run in runs)]
    return "\n\n".join(group_table([run for run in runs if run["trains"] == kind]) for kind in kinds)


def group_table(runs: Sequence[Result]) -> str:
    """One row a run, sorted by name: what sets it apart, its steps, and the figures of the weights that it exports."""
    runs = sorted(runs, key=lambda run: str(run["name"]))
    figures = [chosen_figures(run) for run in runs]
    names = [name for name in COLUMNS if any(name in found for found in figures)]
    apart = differing([_filled(run) for run in runs])
    rows = [
        (
            str(run["name"]) + ("" if run["finished"] else " (unfinished)"),
            ", ".join(f"{field} {value}" for field, value in own.items()) or "–",
            f"{run['steps']:,}",
            *(figure_text(found.get(name), ".3f") for name in names),
        )
        for run, own, found in zip(runs, apart, figures, strict=True)
    ]
    return table(("run", "what differs", "steps", *(COLUMNS[name] for name in names)), rows)


def real_curves(runs: Sequence[Result]) -> list[Curve]:
    """Recovered by true minus by swapped gists at every evaluation, for the runs that have both."""
    curves: list[Curve] = []
    for run in sorted(runs, key=lambda run: str(run["name"])):
        figures = run["curve"]["figures"]
        if "recovered/gist" in figures and "recovered/swapped" in figures:
            pairs = zip(figures["recovered/gist"], figures["recovered/swapped"], strict=True)
            values = [None if own is None or other is None else own - other for own, other in pairs]
            curves.append((str(run["name"]), list(run["curve"]["steps"]), values, None))
    return curves


def differing(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each configuration (flat) the fields that are not the same in all of them."""
    names = dict.fromkeys(name for config in configs for name in config)
    varied = [name for name in names if len({repr(config.get(name)) for config in configs}) > 1]
    return [{name: config[name] for name in varied if name in config} for config in configs]


def _filled(run: Result) -> dict[str, Any]:
    """The run's configuration, flat, with the defaults that the trainer's own fields had before they existed.

    Fields of the recipe (read-out, losses, mixture) that a run lacks stay absent: what they stood for then is not known.
    """
    fields = {name: field.get_default(call_default_factory=True) for name, field in RunConfig.model_fields.items()}
    defaults = {name: value for name, value in fields.items() if value is not PydanticUndefined}
    return {name: value for name, value in (defaults | _flat(run["config"])).items() if name not in INCIDENTAL}


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = list(value) if isinstance(value, tuple) else value
    return found
