"""megacontext add: files, folders and standard input become documents of the memory."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacontext.cli import output
from megacontext.cli.layers import tell_behind
from megacontext.cli.progress import ingest_progress
from megacontext.cli.text import STDIN
from megacontext.cli.verb import Call, Model
from megacontext.errors import InvalidInput

if TYPE_CHECKING:
    from megacontext.engine.ingest import Receipt

_SHOWN = 20


def add(
    call: Call,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files and folders; '-' is standard input.")],
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Tag the documents; may be repeated.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Label the documents, see megacontext label; may be repeated.")
    ] = None,
    message: Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="What to write into the log.")] = "",
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What standard input is called: it becomes text:NAME.")
    ] = None,
    allow_erased: Annotated[
        bool, typer.Option("--allow-erased", help="Let documents in again that were erased from this memory.")
    ] = False,
    model: Model = None,
) -> None:
    """Add files, folders or standard input to the memory.

    Folders are read recursively, without hidden files. What is unchanged is recognised, what has changed becomes a new
    version, and what is no text is skipped and reported. When the receipt is printed, everything in it is safely on
    disk; after an interruption the same command goes on where it was. Exit code 2 if nothing could be added at all.

    A file's name, however it is given: file: and its path from the folder that holds the memory, if it lies in there, else
    its whole path, file:///…; a link to a file stands for itself. If memory or files have moved and nothing lies at the old
    place, a file that says what it said (most of it) keeps the name that it had, and so does a folder. Standard input is
    stdin:, of which the next one is a new version, or text:NAME.
    """
    there = [path for path in paths if path == STDIN or os.path.exists(path)]
    absent = [{"uri": path, "reason": "it does not exist"} for path in paths if path not in there]
    if not there:
        raise InvalidInput(f"nothing to add: {_listing(paths)} {'does' if len(paths) == 1 else 'do'} not exist")
    memory = call.ready(model)
    with ingest_progress() as listener:
        receipt = memory.add(
            *(Path(path) if path != STDIN else path for path in there),
            name=name,
            tags=tag or (),
            labels=label or (),
            message=message,
            author=author(),
            allow_erased=allow_erased,
            listener=listener,
        )
    skipped = [*absent, *({"uri": each.uri, "reason": each.reason} for each in receipt.skipped)]
    if not receipt.documents and not receipt.unchanged:
        reasons = _listing([f"{each['uri']} ({each['reason']})" for each in skipped])
        raise InvalidInput(f"nothing could be added: {reasons or _listing(there) + ' holds no files'}")
    if not call.json:
        _print_skipped(skipped)
        _print_names(receipt)
    behind = [layer for layer in memory.layers() if not layer.current]
    tell_behind(behind)
    value = {**_facts(receipt, skipped), "layers_behind": [layer.to_json() for layer in behind]}
    call.show(value, lambda: _print(receipt))


def _facts(receipt: Receipt, skipped: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "documents": receipt.documents,
        "tokens": receipt.tokens,
        "blocks": receipt.blocks,
        "reused": receipt.reused,
        "repacked": receipt.repacked,
        "commit": receipt.commit,
        "seconds": round(receipt.seconds, 3),
        "tokens_per_second": round(_speed(receipt)),
        "added": list(receipt.added),
        "updated": list(receipt.updated),
        "unchanged": list(receipt.unchanged),
        "skipped": skipped,
        "recognised": [{"path": path, "source": source} for path, source in receipt.recognised],
    }


def _print(receipt: Receipt) -> None:
    new = f"{receipt.documents:,}"
    if receipt.updated:
        new += f" ({len(receipt.updated):,} of them new versions)"
    rows = [
        ("documents", new),
        ("unchanged", f"{len(receipt.unchanged):,}" if receipt.unchanged else ""),
        ("tokens", f"{receipt.tokens:,} in {output.many(receipt.blocks, 'block')}"),
        ("reused", f"{output.many(receipt.reused, 'block')} that were there before" if receipt.reused else ""),
        ("repacked", f"{output.many(receipt.repacked, 'dead block')} left out" if receipt.repacked else ""),
        ("commit", output.short(receipt.commit)),
        ("time", f"{receipt.seconds:.1f} s, {_speed(receipt):,.0f} tokens/s"),
    ]
    output.facts([row for row in rows if row[1]])


def _print_skipped(skipped: list[dict[str, str]]) -> None:
    for each in skipped[:_SHOWN]:
        output.warning(f"skipped {each['uri']}: {each['reason']}")
    if len(skipped) > _SHOWN:
        output.warning(f"skipped {len(skipped) - _SHOWN:,} more; --json lists all")


def _print_names(receipt: Receipt) -> None:
    for path, source in receipt.recognised:
        output.note(f"note: {path} is still called {source}, as in the memory, where nothing lies any more")
    if "stdin:" in receipt.updated:
        output.note("note: this takes the place of the standard input that was added before; --name keeps both")


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _speed(receipt: Receipt) -> float:
    return receipt.tokens / max(receipt.seconds, 1e-9)


def author() -> str:
    """Who writes: $MEGACONTEXT_AUTHOR, else the login name, if there is one."""
    try:
        return os.environ.get("MEGACONTEXT_AUTHOR") or getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
