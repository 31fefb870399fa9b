"""megacontext rm: documents are taken out of the memory as it is now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from megacontext.cli import output, place
from megacontext.cli.add import author
from megacontext.cli.verb import Call, Model

if TYPE_CHECKING:
    from megacontext.engine.remove import Removal

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")]


def rm(
    call: Call,
    documents: Annotated[
        list[str],
        typer.Argument(metavar="DOCUMENT...", help=place.SOURCE),
    ],
    dry_run: DryRun = False,
    message: Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="What to write into the log.")] = "",
    model: Model = None,
) -> None:
    """Take documents out of the memory.

    Nothing reads them from then on: no window, no search, no gist above them. Older commits still have them, and adding
    one again brings it back. To destroy what they say, use megacontext erase.
    """
    memory = call.memory(model) if dry_run else call.ready(model)
    named = place.source_patterns(memory.repository.root, documents)
    removal = memory.remove(*named, message=message, author=author(), dry_run=dry_run)
    call.show({**removal.to_json(), "dry_run": dry_run}, lambda: _print(removal, dry_run))


def _print(removal: Removal, dry_run: bool) -> None:
    for source in removal.removed:
        output.line(f"{'would remove' if dry_run else 'removed'} {source}")
    where = "" if dry_run else f"; commit {output.short(removal.commit)}"
    size = f"{output.many(removal.tokens, 'token')} in {output.many(removal.blocks, 'block')}"
    output.line(f"{output.many(len(removal.removed), 'document')}, {size}{where}")
