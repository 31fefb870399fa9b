"""``megacontext bench speed``: decoding, refocus and ingest against history, beside the base alone, as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from megacontext.cli import output
from megacontext.cli.bench import bench, environment

QUICK: dict[str, Any] = {
    **{"histories": (4096, 16384), "budget": 512, "rounds": 2, "interval": 8, "full": (512, 2048, 16384)},
    **{
        "first_token_history": 16384,
        "chunk": 64,
        "depths": (0, 4096),
        "repeats": 1,
        "refocuses": 2,
        "tries": 3,
        "intervals": (16,),
    },
    **{"reuse_items": 1, "memory": 16},
}
"""What ``--quick`` sets: small enough for CI, with a smaller random base; its figures say little."""
QUICK_RANDOM: dict[str, int] = {"width": 384, "layers": 6, "heads": 6, "intermediate": 1024}


@bench.command("speed", epilog="Example:\n\nmegacontext bench speed --json benchmarks/speed.json --quick")
def bench_speed(
    file: Annotated[Path, typer.Option("--json", help="Where the result is written.")],
    model: Annotated[str, typer.Option(help="'bundled' or a bundle's folder, with a GistNet.")] = "bundled",
    folder: Annotated[Path | None, typer.Option(help="Where the memories are made and removed again.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random base.")] = 0,
    profile: Annotated[bool, typer.Option("--profile", help="Also show where the time of a token goes.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Short histories and few repeats, for CI.")] = False,
) -> None:
    """Measure what a token costs, however long the history is.

    Beside the same base reading everything and beside a plain sliding window; what a refocus recomputes; and ingest beside a
    prefill. On the bundle and on a Llama of random weights (100M parameters). All is measured in turns, so that the ratios hold
    on a busy machine; the milliseconds hold only on a quiet one.
    """
    from megacontext.evaluation.speed_bench import RandomLlama, SpeedBenchConfig, run
    from megacontext.evaluation.speed_bench.machine import load
    from megacontext.training.progress import counted

    chosen: dict[str, Any] = {"seed": seed, **({**QUICK, "random": RandomLlama(**QUICK_RANDOM)} if quick else {})}
    before = load()
    found = run(model, SpeedBenchConfig(**chosen), counted, folder)
    result = {
        "schema": found.pop("schema"),
        "kind": found.pop("kind"),
        "environment": {**environment(), "load": [before, load()]},
        "quick": quick,
        **found,
    }
    result["config"]["model"] = "bundled" if model == "bundled" else Path(model).name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    show(result, profile=profile)


def show(result: Mapping[str, Any], *, profile: bool) -> None:
    """The records as tables, and the aims."""
    from megacontext.engine.profile import PARTS
    from megacontext.evaluation.speed_bench import tables

    output.table(tables.DECODE, tables.decode_rows(result), right=tables.DECODE[2:])
    output.table(tables.REFOCUS, tables.refocus_rows(result), right=tables.REFOCUS[3:])
    output.table(tables.INGEST, tables.ingest_rows(result), right=tables.INGEST[1:])
    if profile:
        columns = ("base", "every", *PARTS)
        output.table(columns, tables.profile_rows(result), right=columns[2:])
    for line in tables.aim_lines(result):
        output.line(line)
