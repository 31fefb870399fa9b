"""``megacontext bench recall``: needles far back in real memories on disk, as one JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from megacontext.cli import output
from megacontext.cli.bench import _numbers, _words, bench, environment, load_parts, source_of

QUICK: dict[str, Any] = {"cases": 3, "lengths": (4096, 16_384), "windows": (512,), "policies": ("suffix", "recency")}
"""What ``--quick`` sets: small enough for CI, too few cases to say anything about a model."""


@bench.command("recall", epilog="Example:\n\nmegacontext bench recall --json benchmarks/recall.json --dataset data/python")
def bench_recall(
    file: Annotated[Path, typer.Option("--json", help="Where the result is written.")],
    cases: Annotated[int, typer.Option(min=1, help="Cases of each task.")] = 24,
    lengths: Annotated[str, typer.Option(help="Tokens of history.")] = "4096,16384,65536,262144,1048576",
    windows: Annotated[str, typer.Option(help="Windows; all but the first only at 65,536 tokens.")] = "1024,512,256",
    policies: Annotated[str, typer.Option(help="Focus policies.")] = "hybrid,lens,suffix,recency",
    tasks: Annotated[str, typer.Option(help="Only these tasks, such as single_key,multi_key; default: all.")] = "",
    everything: Annotated[
        bool, typer.Option("--everything", help="Ask the memory also what the base cannot do when it reads everything.")
    ] = False,
    model: Annotated[str, typer.Option(help="'bundled', a bundle's folder, a base's folder or hub id.")] = "bundled",
    lens: Annotated[str | None, typer.Option(help="A LensNet to measure instead of the bundle's, or 'none'.")] = None,
    documents: Annotated[Path | None, typer.Option(help="A folder whose subfolders are the held-out histories.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="A prepared dataset: the held-out splits of it.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of cases and histories.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A few cases in short histories, for CI.")] = False,
) -> None:
    """Ask for what was told far back: keys and values, chains of variables, the most frequent of several words.

    Lines are told between those of real code of held-out packages, in a memory on disk, and asked for in a session with a small
    window. Greedy answers are judged by code; what the base gets right when it reads everything raw stands beside.
    """
    from megacontext.evaluation.recall_bench import RecallConfig, run
    from megacontext.evaluation.recall_bench.tasks import TASKS
    from megacontext.training.progress import counted

    chosen: dict[str, Any] = {
        **{"cases": cases, "lengths": _numbers(lengths), "windows": _numbers(windows), "policies": _words(policies)},
        **{"tasks": _words(tasks) or tuple(TASKS), "everything": everything, "seed": seed},
    }
    config = RecallConfig(**{**chosen, **(QUICK if quick else {})})
    bundle = load_parts(model, gistnet=None, lens=lens)
    sources = [source_of(bundle, documents=documents, dataset=dataset, split="test")]
    if dataset is not None:
        sources.append(source_of(bundle, documents=None, dataset=dataset, split="validation"))
    histories = [ids for source in sources for ids in source.histories]
    found = run(bundle, histories, sources[0].closed_by, config, counted)
    found["config"] |= {"source": " and ".join(each.name for each in sources)}
    found["config"]["model"] = "bundled" if model == "bundled" else Path(model).name
    result = {"schema": found.pop("schema"), "kind": found.pop("kind"), "environment": environment(), "quick": quick, **found}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    show(result)


def show(result: dict[str, Any]) -> None:
    """What the base does raw, and what it does through the memory."""
    from megacontext.evaluation.recall_bench.tables import RAW_COLUMNS, memory_table, raw_rows

    output.table(RAW_COLUMNS, raw_rows(result), right=RAW_COLUMNS[1:4])
    if result["tasks"]:
        columns, rows = memory_table(result)
        output.line()
        output.table(columns, rows, right=columns[2:])
