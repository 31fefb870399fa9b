"""Turn the folder of a training run into one small JSON file that can be committed.

    python -m tools.summarize_run runs/gist --group read-out
    python -m tools.summarize_run runs/w128/base runs/w128/gist --group scaling

Writes ``benchmarks/results/runs/NAME.json`` with the configuration, steps, tokens, parameters, the curve of every
validation figure and the best ones. ``tools.render_results`` makes the tables and curves of the docs from these files.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from megacontext.errors import CorruptCheckpoint, DatasetError, MegaContextError

SCHEMA = 1
DIGITS = 6
LOSS_POINTS = 40
RESULTS = Path("benchmarks/results/runs")
VALIDATION = "validation/"
NAMES = {"base": "base", "gist": "gistnet", "lens": "lensnet"}
HIGHER = ("recovered", "real", "share_of_oracle", "drop_minus_full", "reconstruct", "rank", "effective_rank")
"""First parts of the names of figures of which more is better; of all others (losses, norms) less is."""


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 where a folder holds no run."""
    parser = argparse.ArgumentParser(prog="python -m tools.summarize_run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run's output, such as runs/gist")
    parser.add_argument("--group", default="", help="what it is compared with: runs of a group share a table")
    parser.add_argument("--name", help="file name instead of the folder's; for one folder")
    parser.add_argument("--into", type=Path, default=RESULTS, help=f"where to write; {RESULTS} unless told")
    args = parser.parse_args(argv)
    if args.name is not None and len(args.folders) > 1:
        parser.error("--name is for one folder")
    try:
        for folder in args.folders:
            summary = summarize(folder, name=args.name, group=args.group)
            args.into.mkdir(parents=True, exist_ok=True)
            target = args.into / f"{summary['name']}.json"
            target.write_text(as_json(summary))
            print(target)
    except MegaContextError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def summarize(folder: Path, *, name: str | None = None, group: str = "") -> dict[str, Any]:
    """The summary of the run in ``folder``: plain data, figures with six digits, no path of this machine.

    ``tokens`` (read by the model while training) is there where the run logged it or its configuration fixes it.
    DatasetError where there is no run, CorruptCheckpoint where its metrics cannot be read.
    """
    config = _json(folder / "config.json")
    records = _records(folder / "metrics.jsonl")
    curve = _curve(records)
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "run",
        "name": name or _name(folder),
        "group": group,
        "trains": trained(config),
        "config": _portable(config),
        "steps": int(records[-1]["step"]) + 1,
        "finished": int(records[-1]["step"]) + 1 >= int(config["steps"]),
        "parameters": _parameters(folder / "model", trained(config)),
        "seconds": _rounded(sum(record.get("seconds", 0.0) for record in records)),
        "loss": _loss(records),
        "curve": curve,
        "best": {key: _best(key, curve) for key in curve["figures"]},
    }
    tokens = _tokens(config, records)
    if tokens is not None:
        summary["tokens"] = tokens
    chosen = _chosen(config, curve)
    if chosen is not None:
        summary["chosen"] = chosen
    return summary


def as_json(summary: Mapping[str, Any]) -> str:
    """JSON for people and for diffs: one field a line, each list of figures on one."""
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    return (
        re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text)
        + "\n"
    )


def trained(config: Mapping[str, Any]) -> str:
    """What a run with that configuration trains: base, native, gist, lens, or other."""
    marks = {"lens": "train_items", "native": "plain_rows", "base": "shape", "gist": "gistnet"}
    return next((kind for kind, field in marks.items() if field in config), "other")


def higher_is_better(figure: str) -> bool:
    """Whether more of the figure of that name is better: NLL and the like are better when lower."""
    return figure.startswith(HIGHER)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DatasetError(f"{path.parent} holds no training run ({path.name} is missing): name the output folder of one")
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as err:
        raise CorruptCheckpoint(f"{path} is not valid JSON: {err}") from err
    return found


def _records(path: Path) -> list[dict[str, float]]:
    if not path.is_file():
        raise DatasetError(f"{path.parent} has no {path.name} yet: train it first")
    found: list[dict[str, float]] = []
    lines = path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            found.append(json.loads(line))
        except ValueError as err:
            if number == len(lines) and not line.endswith("\n"):
                break  # the run was stopped, or is, while it wrote this line
            raise CorruptCheckpoint(f"{path}, line {number}, is not valid JSON: {err}") from err
    if not found:
        raise DatasetError(f"{path} holds no step yet: train on")
    return found


def _name(folder: Path) -> str:
    """The folder's path below ``runs``, joined by dashes."""
    parts = folder.resolve().parts
    below = parts[len(parts) - parts[::-1].index("runs") :] if "runs" in parts else parts[-1:]
    return "-".join(below) or folder.name


def _portable(value: Any) -> Any:
    """The same configuration without absolute paths: those below a folder ``runs`` begin there, of others the last part."""
    if isinstance(value, dict):
        return {key: _portable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    if isinstance(value, str) and Path(value).is_absolute():
        parts = Path(value).parts
        return "/".join(parts[len(parts) - 1 - parts[::-1].index("runs") :]) if "runs" in parts else parts[-1]
    return value


def _curve(records: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """``steps`` done at each evaluation, and ``figures``: name → values there (null where one is missing)."""
    evaluated = [record for record in records if any(key.startswith(VALIDATION) for key in record)]
    steps = [int(record["step"]) + 1 for record in evaluated]
    names = sorted({key for record in evaluated for key in record if key.startswith(VALIDATION)})
    figures = {key.removeprefix(VALIDATION): [_rounded(record.get(key)) for record in evaluated] for key in names}
    before = {key.removeprefix("before/"): _rounded(records[0][key]) for key in records[0] if key.startswith("before/")}
    if before and figures.keys() == before.keys():
        return {"steps": [0, *steps], "figures": {key: [before[key], *values] for key, values in figures.items()}}
    return {"steps": steps, "figures": figures}


def _best(name: str, curve: Mapping[str, Any]) -> dict[str, Any] | None:
    """The best value of one figure and the steps done then; None if it was never finite."""
    pairs = [(value, step) for value, step in zip(curve["figures"][name], curve["steps"], strict=True) if value is not None]
    if not pairs:
        return None
    sign = 1 if higher_is_better(name) else -1
    value, step = max(pairs, key=lambda pair: sign * pair[0])
    return {"value": value, "step": step}


def _chosen(config: Mapping[str, Any], curve: Mapping[str, Any]) -> dict[str, Any] | None:
    """All figures of the evaluation whose weights the run exports: the best by ``stop_on``, or the last."""
    steps, figures = curve["steps"], curve["figures"]
    if not steps:
        return None
    at = len(steps) - 1
    watched = figures.get(config.get("stop_on"))
    if watched is not None:
        sign = 1 if config.get("better") == "higher" else -1
        at = max(range(len(steps)), key=lambda i: -math.inf if watched[i] is None else sign * watched[i])
    return {"step": steps[at], "figures": {key: values[at] for key, values in figures.items()}}


def _loss(records: Sequence[Mapping[str, float]]) -> dict[str, list[Any]]:
    """The training loss, averaged over at most ``LOSS_POINTS`` stretches of steps; ``steps`` are their ends."""
    width = max(1, math.ceil(len(records) / LOSS_POINTS))
    parts = [records[first : first + width] for first in range(0, len(records), width)]
    return {
        "steps": [int(part[-1]["step"]) + 1 for part in parts],
        "loss": [_rounded(sum(record["loss"] for record in part) / len(part)) for part in parts],
    }


def _tokens(config: Mapping[str, Any], records: Sequence[Mapping[str, float]]) -> int | None:
    """Tokens that the training steps read: as logged, or for a base batch times context length."""
    if all("tokens" in record for record in records):
        return int(sum(record["tokens"] for record in records))
    if trained(config) != "base":
        return None
    return len(records) * int(config.get("accumulate", 1)) * int(config["batch"]) * int(config["shape"]["context_length"])


def _parameters(folder: Path, kind: str) -> dict[str, int]:
    """Parameters of each exported model: of what was trained, or by the subfolder's name where there are several."""
    found: dict[str, int] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        name = path.parent.name if path.parent != folder else NAMES.get(kind, kind)
        with safe_open(str(path), framework="np") as file:
            count = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        found[name] = found.get(name, 0) + count
    return found


def _rounded(value: float | None) -> float | None:
    """Six significant digits; None for what is missing or not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


if __name__ == "__main__":
    sys.exit(main())
