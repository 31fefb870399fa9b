"""``megacontext bench quality``: the arms and their controls on held-out documents, as one JSON file."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PAIRS = (
    ("gist", "drop"),
    ("gist", "swapped"),
    ("gist", "noise"),
    ("gist", "mean"),
    ("gist", "recency_28"),
    ("megacontext", "gist"),
    ("megacontext", "recency_224"),
    ("megacontext", "random_expand"),
    ("megacontext", "recent_expand"),
)
SCHEMA = 1


bench = typer.Typer(no_args_is_help=True, help="Measure quality, beside the controls that could expose a figure.")


@bench.command("quality", epilog="Example:\n\nmegacontext bench quality --json benchmarks/quality.json --items 120")
def bench_quality(
    file: Annotated[Path, typer.Option("--json", help="Where the result is written.")],
    items: Annotated[int, typer.Option(help="How many items.")] = 120,
    model: Annotated[str, typer.Option(help="'bundled', a bundle's folder, a model's folder or hub id.")] = "bundled",
    documents: Annotated[Path | None, typer.Option(help="A folder whose subfolders are the held-out histories.")] = None,
    renewal: Annotated[int, typer.Option(help="Tokens between two choices of the arms that choose.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the items and the intervals.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="12 items, for CI.")] = False,
) -> None:
    """Measure what the window carries of the far past, beside every control that could expose it.

    Without --documents: the packages of this Python's standard library that no training saw.
    """
    result = run_quality(model=model, items=12 if quick else items, documents=documents, renewal=renewal, seed=seed)
    result["quick"] = quick
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    from megacontext.evaluation.tables import quality_markdown

    Console(highlight=False).print(quality_markdown(result), markup=False)


def run_quality(*, model: str, items: int, documents: Path | None, renewal: int, seed: int) -> dict[str, Any]:
    """The result in the form of BENCHMARKS §4, at a quarter of the far context's slots."""
    from megacontext.engine.bundle import load_bundle
    from megacontext.evaluation.items import draw_items
    from megacontext.evaluation.quality import measure, report, standard_arms

    bundle = load_bundle(model)
    config = {"far": 896, "tail": 128, "horizon": 64, "items": items, "slots": 224, "renewal": renewal, "seed": seed}
    drawn = draw_items(_histories(bundle.tokenizer, documents), far=896, tail=128, horizon=64, count=items, seed=seed)
    arms = standard_arms(bundle, drawn, slots=config["slots"], renewal=renewal)
    columns = (TextColumn("items"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("items", total=items)
        measured = measure(bundle.base, bundle.gists, drawn, arms, progress=lambda: progress.advance(bar))
    return {
        "schema": SCHEMA,
        "kind": "quality",
        "environment": environment(),
        "config": {**config, "model": "bundled" if model == "bundled" else bundle.base.fingerprint},
        **report(measured, seed=seed, pairs=PAIRS),
    }


def _histories(tokenizer: Any, documents: Path | None) -> list[npt.NDArray[np.int64]]:
    from megacontext.training.corpus import CorpusConfig, collect
    from megacontext.training.held_out import held_out_histories, joined

    if documents is None:
        return held_out_histories(tokenizer)
    by_package: dict[str, list[str]] = {}
    for file in collect(CorpusConfig(roots=(str(documents),), suffixes=(".py", ".md", ".txt", ".rst"))):
        by_package.setdefault(file.package, []).append(file.text)
    return [joined(texts, tokenizer) for texts in by_package.values()]


def environment() -> dict[str, Any]:
    """Machine, versions, threads and commit: what a figure needs to be believed."""
    import torch
    import transformers

    import megacontext

    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        commit = found.stdout.strip() if found.returncode == 0 else ""
    except OSError:
        commit = ""
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "megacontext": megacontext.__version__,
        "threads": torch.get_num_threads(),
        "commit": commit,
    }
