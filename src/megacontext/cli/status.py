"""megacontext status: what the memory holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from megacontext.cli import output
from megacontext.cli.layers import coverage
from megacontext.cli.verb import Call

if TYPE_CHECKING:
    from megacontext.engine.status import Status
    from megacontext.storage.underway import UnderWay


def status(
    call: Call,
    at: Annotated[
        str | None, typer.Option(metavar="REF", help="As of this branch, tag or commit instead of the current branch.")
    ] = None,
) -> None:
    """Show what the memory holds: documents, tokens, and the tree over them.

    The tree has levels of detail (LOD): a LOD1 node stands for a block of 32 tokens, a LOD2 node for 1,024, a LOD3
    node for 32,768, and so on. A document is there once it is complete; one that is still being written, or was
    interrupted, is named with how far it is.
    """
    now = call.memory().status(at)
    call.show(now.to_json(), lambda: _print(now))


def _print(now: Status) -> None:
    levels = ", ".join(f"{count:,} LOD{lod}" for lod, count in now.levels.items() if lod) or "none yet"
    gists = "\n           ".join(map(coverage, now.layers)) or "none"
    output.facts(
        [
            ("memory", now.path),
            ("model", now.model),
            ("branch", f"{now.branch} at {output.short(now.commit)}"),
            ("documents", f"{now.documents:,}"),
            (
                "tokens",
                f"{now.tokens:,} in {output.many(now.blocks - now.dead, 'block')}"
                + (f", {now.dead:,} dead" if now.dead else ""),
            ),
            ("levels", levels),
            ("gists", gists),
            *([("under way", _far(now.under_way))] if now.under_way else []),
        ]
    )


def _far(document: UnderWay) -> str:
    """How far an unfinished document is."""
    far = output.many(document.blocks, "block")
    if document.chars and document.chars_done >= 0:
        far = f"{document.chars_done / document.chars:.0%} of {document.chars:,} characters, {far}"
    end = "is being written" if document.writing else "was interrupted: the same add goes on with it"
    return f"{document.source} ({far}) {end}"
