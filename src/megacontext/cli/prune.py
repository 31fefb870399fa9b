"""megacontext prune and restore: raw tokens go to an archive and come back; gists stay in use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megacontext.cli import output, place
from megacontext.cli.add import author
from megacontext.cli.rm import DryRun
from megacontext.cli.text import moment
from megacontext.cli.verb import Call
from megacontext.errors import InvalidInput

if TYPE_CHECKING:
    from megacontext.engine.prune import Pruned

Documents = Annotated[
    list[str] | None,
    typer.Argument(metavar="[DOCUMENT]...", help=place.SOURCE),
]


def prune(
    call: Call,
    documents: Documents = None,
    before: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Instead of names: all that was added before this time, such as 2026-01-31."),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the raw tokens go. Without it: archive/ in the memory."),
    ] = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. Needed where there is no terminal to ask on.")] = False,
) -> None:
    """Move the raw tokens of documents to an archive; their gists stay.

    Windows show such documents by their gists only, searches skip them, and their text cannot be read until megacontext
    restore brings it back, bit for bit. Older versions go along. What a protected tag holds stays, and so does the end of
    a branch that is being written; which these are is told. Commits keep their names.
    """
    added_before = moment(before) if before is not None else None
    memory = call.memory()
    named = place.source_patterns(memory.repository.root, documents)
    if not dry_run and not yes:
        if not sys.stdin.isatty():
            raise InvalidInput("this takes texts out of reach: look at it with --dry-run, then give --yes")
        outlook = memory.prune(*named, before=added_before, archive=archive, dry_run=True)
        _print(outlook, "would prune", output.note)
        if not typer.confirm("Prune this?", err=True):
            raise InvalidInput("nothing was pruned")
    done = memory.prune(*named, before=added_before, archive=archive, dry_run=dry_run, author=author())
    call.show(done.to_json(), lambda: _print(done, "would prune" if dry_run else "pruned"))


def restore(
    call: Call,
    documents: Documents = None,
    archive: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the raw tokens are, if not where they were put.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Bring pruned raw tokens back, bit for bit: those of these documents, or all.

    Each object is checked against its name before it is used.
    """
    memory = call.memory()
    named = place.source_patterns(memory.repository.root, documents)
    done = memory.restore(*named, archive=archive, dry_run=dry_run, author=author())
    call.show(done.to_json(), lambda: _print(done, "would restore" if dry_run else "restored"))


def _print(done: Pruned, what: str, tell: Callable[[str], None] = output.line) -> None:
    for source in done.documents:
        tell(f"{what} {source}")
    size = f" of {done.bytes:,} bytes" if done.bytes else ""
    tell(f"{output.many(done.blocks, 'block')} in {output.many(done.objects, 'object')}{size}")
    if done.kept:
        tell(f"{output.many(done.kept, 'block')} stay as they are")
    for keeper, why in done.keepers.items():
        tell(f"kept by {keeper}: {why}")
