"""``megacontext demo``: the main job on real input, from an empty folder to a table with controls."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from megacontext.engine.bundle import Bundle
    from megacontext.engine.ingest import Receipt
    from megacontext.engine.memory import Memory
    from megacontext.engine.session import Session

PROMPT = '''import asyncio

async def fetch(host, port):
    """Open a connection, send one line and return the answer."""
    reader, writer = await asyncio.open_connection('''

INGEST_TOKENS = 300_000
BUDGET = "1/4"
ARMS = ("drop", "recency", "suffix", "swapped", "gist", "random_expand", "megacontext", "full")


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much the demo does: tokens to ingest (None: everything), items of the table, tokens to generate."""

    ingest: int | None = INGEST_TOKENS
    items: int = 48
    generate: int = 64


def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where the demo's memory is made.")] = Path("demo.mc"),
    everything: Annotated[bool, typer.Option("--all", help="Ingest the whole standard library.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A smaller run, for CI.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout; the story on stderr.")] = False,
) -> None:
    """Watch a frozen language model work with a memory far larger than its window.

    Ingests this Python's own standard library with the bundled checkpoint, shows the tree and the working
    context before and after refocusing, generates code with the memory, and measures on modules that no
    training saw, beside controls that would show it if the gists carried nothing.
    """
    size = DemoSize(ingest=60_000, items=10, generate=16) if quick else DemoSize()
    if everything:
        size = DemoSize(ingest=None, items=size.items, generate=size.generate)
    console = Console(stderr=as_json, highlight=False)
    result = run_demo(directory, size, console)
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")


def run_demo(directory: Path, size: DemoSize, console: Console) -> dict[str, Any]:
    """The story, told on ``console``; returns its figures as plain data."""
    started = time.monotonic()
    console.rule("1  A memory of this Python's standard library")
    memory = _fresh_memory(directory)
    bundle = memory.bundle
    console.print(
        f"Frozen base: {bundle.base.family}, {sum(p.numel() for p in bundle.base.model.parameters()):,} parameters, "
        f"a window of at most {bundle.base.context_length:,} positions."
    )
    receipt = _ingest(memory, size, console)
    _show_tree(memory, console)
    console.rule("2  The working context, before and after refocusing")
    story = _session(memory, size, console)
    console.rule("3  Does it carry the far past? NLL on modules that no training saw")
    quality = _quality(bundle, size, console)
    console.rule("Try next")
    where = f"-C {directory}"
    for line in (
        f'.venv/bin/megacontext {where} search "def open_connection"',
        f'.venv/bin/megacontext {where} explain "class JSONDecoder"',
        f'.venv/bin/megacontext {where} generate "import argparse\\n\\nparser = " --max-new-tokens 48',
    ):
        console.print(f"  {line}", markup=False)
    console.print(f"\nThe whole demo took {time.monotonic() - started:.0f} s.")
    return {
        "status": memory.status().to_json(),
        "receipt": {"documents": receipt.documents, "tokens": receipt.tokens, "seconds": receipt.seconds},
        "session": story,
        "quality": quality,
        "seconds": time.monotonic() - started,
    }


def _fresh_memory(directory: Path) -> Memory:
    import megacontext

    if (directory / "megacontext.json").is_file():
        shutil.rmtree(directory)
    return megacontext.init(directory)


def _ingest(memory: Memory, size: DemoSize, console: Console) -> Receipt:
    from megacontext.engine.events import BlocksIngested, Event
    from megacontext.training.held_out import standard_library_part

    paths = standard_library_part(lambda text: len(memory.tokenizer.encode(text).ids), tokens=size.ingest)
    columns = (TextColumn("ingesting"), BarColumn(), TextColumn("{task.completed:,} tokens"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("ingest", total=size.ingest)

        def listener(event: Event) -> None:
            if isinstance(event, BlocksIngested):
                progress.advance(bar, event.tokens)

        receipt = memory.add(*paths, message="The standard library", listener=listener)
    console.print(
        f"{receipt.documents} documents, {receipt.tokens:,} tokens in {receipt.blocks:,} blocks of 32, "
        f"{receipt.seconds:.1f} s ({receipt.tokens / receipt.seconds:,.0f} tokens/s), commit {receipt.commit[:12]}."
    )
    return receipt


def _show_tree(memory: Memory, console: Console) -> None:
    table = Table("level", "nodes", "each covers", box=None, padding=(0, 2))
    for lod, count in memory.status().levels.items():
        table.add_row("tokens" if lod == 0 else f"LOD{lod} gists", f"{count:,}", f"{32**lod:,} tokens" if lod else "1")
    console.print(table)


def _session(memory: Memory, size: DemoSize, console: Console) -> dict[str, Any]:
    from megacontext.core import describe, legend
    from megacontext.engine.events import Event, Refocused

    edits: list[dict[str, Any]] = []

    def listener(event: Event) -> None:
        if isinstance(event, Refocused):
            edits.extend(
                {"step": event.step, "edit": describe(d.edit), "score": d.score, "cost": d.cost}
                for d in event.result.plan.decisions
                if d.chosen
            )

    session = memory.session(name="demo", listener=listener)
    try:
        tokens = session.append(PROMPT)
        console.print(
            f"The prompt has {tokens} tokens, the memory {session.snapshot.cursor:,}; the window {session.config.budget:,}."
        )
        console.print(f"\nbefore   {legend()}", markup=False)
        console.print(session.strip(min(100, console.width - 2)), markup=False)
        session.refocus(unlimited=True)
        console.print("\nafter")
        console.print(session.strip(min(100, console.width - 2)), markup=False)
        first = list(edits)
        _show_edits(first, console)
        console.print("\nGenerated with the memory (what a model of this size can do):")
        text = _generate(session, size, console)
        later = edits[len(first) :]
        console.print(f"While decoding, the focus made {len(later)} edits:")
        _show_edits(later, console)
        stats = session.cache_stats
        console.print(f"Slots through the base {stats.forwarded:,}, spared by the key/value cache {stats.reused:,}.")
        return {
            "budget": session.config.budget,
            "cost": session.window.cost,
            "edits": edits,
            "generated": text,
            "forwarded": stats.forwarded,
            "reused": stats.reused,
        }
    finally:
        session.close()
        memory.drop_session(session.branch)


def _generate(session: Session, size: DemoSize, console: Console) -> str:
    console.print(PROMPT, style="dim", end="", markup=False)
    pieces = []
    for piece in session.generate("", max_new_tokens=size.generate):
        console.print(piece, end="", markup=False)
        pieces.append(piece)
    console.print("\n")
    return "".join(pieces)


def _show_edits(edits: list[dict[str, Any]], console: Console, most: int = 12) -> None:
    for edit in edits[:most]:
        console.print(f"  {edit['score']:+.2f}  {edit['edit']}", markup=False)
    if len(edits) > most:
        console.print(f"  … and {len(edits) - most} more")


def _quality(bundle: Bundle, size: DemoSize, console: Console) -> dict[str, Any]:
    from megacontext.evaluation.suite import QualityConfig, Source, run
    from megacontext.training.held_out import held_out_histories

    histories = held_out_histories(bundle.tokenizer)
    source = Source(histories=histories, closed_by=bundle.tokenizer.eos_token_id, name="test packages")
    config = QualityConfig(items=size.items, budgets=(BUDGET,), oracle_items=0, arms=ARMS)

    @contextmanager
    def stage(name: str, total: int) -> Iterator[Callable[[], None]]:
        with Progress(TextColumn("measuring"), BarColumn(), TimeElapsedColumn(), console=console) as progress:
            bar = progress.add_task(name, total=total)
            yield lambda: progress.advance(bar)

    figures = run(bundle, source, config, stage)
    _show_quality(figures, console)
    return figures


def _show_quality(figures: dict[str, Any], console: Console) -> None:
    from megacontext.evaluation.tables import COLUMNS, budget_title, difference_rows, gate_sentence, quality_rows

    config = figures["config"]
    console.print(
        f"{config['items']} items from {config['documents']} held-out documents: {config['far']} tokens of far context, "
        f"{config['tail']} of raw tail, the next {config['horizon']} scored. Recovered: 0 = as without the far context, "
        "1 = as with all of it. Far-copy: only tokens that occur in the far context and not in the tail."
    )
    budget = figures["budgets"][BUDGET]
    parts = (("All far context as gists, and controls at the same slots", figures), (budget_title(BUDGET, budget), budget))
    for title, part in parts:
        table = Table(box=None, padding=(0, 1), title=title, title_justify="left")
        for number, name in enumerate(COLUMNS):
            table.add_column(name, justify="right" if number else "left")
        for row in quality_rows(part["arms"]):
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        for pair, text, verdict in difference_rows(part["differences"]):
            console.print(f"  {pair}: {text} nats, {verdict}", markup=False)
    console.print(gate_sentence(figures["gate"]), markup=False)
