"""megacontext repack: what is dead is left out, and what lives moves together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from megacontext.cli import output
from megacontext.cli.add import author
from megacontext.cli.layers import tell_behind
from megacontext.cli.rm import DryRun
from megacontext.cli.verb import Call, Model, quiet_loading

if TYPE_CHECKING:
    from megacontext.engine.repack import Repacked


def repack(
    call: Call,
    everything: Annotated[
        bool, typer.Option("--all", help="Leave out all that is dead, however little that is of what would be written anew.")
    ] = False,
    dry_run: DryRun = False,
    branch: Annotated[str | None, typer.Option(metavar="NAME", help="Work on this branch instead of the current one.")] = None,
    message: Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="What to write into the log.")] = "",
    model: Model = None,
) -> None:
    """Leave out what was superseded or removed, and move together what lives.

    Without --all this begins where more than half of all that follows is dead; add does that much by itself. Texts, their
    order, tags and labels stay, and older commits still have everything: megacontext gc frees disk space only for what no
    branch and no tag leads to.
    """
    memory = call.memory(model)
    quiet_loading(memory.model)
    done = memory.repack(branch=branch, everything=everything, dry_run=dry_run, message=message, author=author())
    if not dry_run:
        tell_behind(memory.layers(done.branch))
    call.show(done.to_json(), lambda: _print(done))


def _print(done: Repacked) -> None:
    if not done.freed:
        output.line("nothing to repack")
        return
    would = "would be " if done.dry_run else ""
    rows = [
        ("left out", f"{would}{output.many(done.freed, 'dead block')}"),
        ("written", f"{would}{output.many(done.moved, 'live block')} from block {done.first:,} on"),
        ("blocks", f"{done.blocks:,}" + (f", {done.dead:,} dead" if done.dead else "")),
        ("commit", f"{output.short(done.commit)} on {done.branch}"),
    ]
    output.facts(rows[:3] if done.dry_run else rows)
