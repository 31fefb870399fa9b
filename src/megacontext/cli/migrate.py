"""megacontext migrate: from an earlier format to the present one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from megacontext.cli import output, place
from megacontext.cli.verb import Call

if TYPE_CHECKING:
    from megacontext.storage.migrate import Migrated


def migrate(
    call: Call,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be changed.")] = False,
) -> None:
    """Bring a memory of an earlier format to the present one, so that it can be written.

    Reading needs no migration. What is changed is kept in backup/ first; putting it back takes the migration back, as long
    as nothing was written since.
    """
    from megacontext.storage.migrate import migrate as bring

    root = place.find_memory(call.directory)
    done = bring(root, dry_run=dry_run)
    value = {
        "path": str(root),
        "from": done.before,
        "to": done.after,
        "dry_run": dry_run,
        "means": list(done.means),
        "changed": list(done.changed),
        "backup": done.backup,
    }
    call.show(value, lambda: _print(done, dry_run))


def _print(done: Migrated, dry_run: bool) -> None:
    if not done.means:
        output.line(f"format {done.after}: nothing to do")
        return
    verb = "would bring" if dry_run else "brought"
    output.line(f"{verb} it from format {done.before} to {done.after}")
    for each in done.means:
        output.line(f"  {each}")
    output.line(f"changed: {', '.join(done.changed)}; as before in {done.backup}/")
