"""``megacontext bench storage``: appends, reads, opening and branching, beside a plain file, as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from megacontext.cli import output
from megacontext.cli.bench import bench, environment

QUICK: dict[str, Any] = {
    **{"blocks": 50_000, "appends": 100, "reads": 200},
    **{"cold_reads": 5, "opens": 20, "branches": 20},
}
"""What ``--quick`` sets: small enough for CI; the memory is a twentieth of the one that the aims are about."""


@bench.command("storage", epilog="Example:\n\nmegacontext bench storage --json benchmarks/storage.json --quick")
def bench_storage(
    file: Annotated[Path, typer.Option("--json", help="Where the result is written.")],
    blocks: Annotated[int, typer.Option(min=8192, help="Blocks of 32 tokens in the memory.")] = 1_000_000,
    folder: Annotated[
        Path | None, typer.Option(help="Where the files are made and removed again; its disk is what is measured.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the content and of what is read.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small memory and few repeats, for CI.")] = False,
) -> None:
    """Measure how long a memory on disk takes, beside a plain memory-mapped file that is written with the same syncs.

    Both are measured in turns, so that the ratios hold on a busy machine; the milliseconds hold only on a quiet one.
    """
    from megacontext.evaluation.storage_bench import StorageBenchConfig, run
    from megacontext.training.progress import counted

    config = StorageBenchConfig(**{"blocks": blocks, "seed": seed, **(QUICK if quick else {})})
    found = run(config, counted, folder)
    result = {"schema": found.pop("schema"), "kind": found.pop("kind"), "environment": environment(), "quick": quick, **found}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    show(result)


def show(result: Mapping[str, Any]) -> None:
    """The records as a table, and the summary."""
    from megacontext.evaluation.storage_bench.tables import COLUMNS, summary_lines, table_rows

    output.table(COLUMNS, table_rows(result), right=COLUMNS[1:])
    for line in summary_lines(result):
        output.line(line)
