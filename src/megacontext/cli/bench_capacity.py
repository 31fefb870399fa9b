"""``megacontext bench capacity``: what vectors in the gists' places could carry at most, and what the GistNet reaches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from megacontext.cli import output
from megacontext.cli.bench import bench, environment, load_parts, source_of

LABELS = {
    "drop": "drop: the tail alone (floor)",
    "swapped": "another history's gists",
    "gist": "gists of the encoder",
    "replayed_swapped": "another history's optimised vectors",
    "replayed": "optimised on the far text replayed (fair bound)",
    "full": "full: all raw (ceiling)",
    "answer_seeing": "optimised on the answer (looks at it)",
}
QUICK: dict[str, Any] = {"items": 4, "steps": 10, "batch": 4}
"""What ``--quick`` sets: small enough for CI, too small to say anything about a model."""


@bench.command("capacity", epilog="Example:\n\nmegacontext bench capacity --json benchmarks/capacity.json --items 24")
def bench_capacity(
    file: Annotated[Path, typer.Option("--json", help="Where the result is written.")],
    items: Annotated[int, typer.Option(min=2, help="How many items.")] = 24,
    steps: Annotated[int, typer.Option(min=1, help="Steps of gradient descent for each item and bound.")] = 150,
    model: Annotated[str, typer.Option(help="'bundled', a bundle's folder, a base's folder or hub id.")] = "bundled",
    gistnet: Annotated[Path | None, typer.Option(help="A GistNet to compare instead of the bundle's.")] = None,
    documents: Annotated[Path | None, typer.Option(help="A folder whose subfolders are the held-out histories.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="A prepared dataset: a held-out split of it.")] = None,
    split: Annotated[
        str, typer.Option(help="With --dataset: validation (for choices) or test (for reporting).")
    ] = "validation",
    far: Annotated[int | None, typer.Option(help="Tokens of far context; default: what the base can read raw.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the items, the replays and the intervals.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A few items and steps, for CI.")] = False,
) -> None:
    """Measure how much gists could carry: vectors optimised for each item on the frozen base, beside the GistNet's.

    Without --documents or --dataset: the packages of this Python's standard library that no training saw.
    """
    from megacontext.training.capacity import CapacityConfig, run
    from megacontext.training.progress import counted

    chosen: dict[str, Any] = {"items": items, "steps": steps, "far": far, "seed": seed, **(QUICK if quick else {})}
    bundle = load_parts(model, gistnet=gistnet, lens="none")
    source = source_of(bundle, documents=documents, dataset=dataset, split=split)
    found = run(bundle, source, CapacityConfig(**chosen), counted)
    result = {"schema": found.pop("schema"), "kind": found.pop("kind"), "environment": environment(), "quick": quick, **found}
    result["config"]["model"] = "bundled" if model == "bundled" else Path(model).name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    show(result)


def show(result: Mapping[str, Any]) -> None:
    """The arms as a table, and the shares that the encoder reaches."""
    rows = []
    for name, label in LABELS.items():
        arm = result["arms"].get(name)
        if arm is None:
            continue
        figures = [f"{arm['nll']:.3f}", f"{arm['far_copy'].get('nll', float('nan')):.3f}"]
        rows.append((label, f"{arm['slots']:.0f}", *figures, f"{arm['recovered']:.2f}" if "recovered" in arm else "–"))
    numbers = ("slots", "NLL", "far-copy", "recovered")
    output.table(("beside the tail", *numbers), rows, right=numbers)
    for bound, found in result["reached"].items():
        if not found["judged"]:
            output.line(f"{bound}: gains nothing clear over drop here, so no share of it is given.")
            continue
        low, high = found["share_ci"]
        share = f"{found['share']:.2f} [{low:.2f}, {high:.2f}]"
        output.line(f"Of what {bound} vectors gain over drop, the encoder's gists reach {share}.")
