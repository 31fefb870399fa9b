"""megacontext diff: what differs between two states of the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from megacontext.cli import output
from megacontext.cli.verb import Call

if TYPE_CHECKING:
    from megacontext.engine.history import Difference, DocumentDifference

Side = Annotated[str | None, typer.Argument(metavar="[A]", help="A branch, tag or commit. Without it: the commit before B's.")]


def diff(
    call: Call,
    a: Side = None,
    b: Annotated[
        str | None, typer.Argument(metavar="[B]", help="Compare A with this one. Without it: the current branch.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(metavar="DOCUMENT", help="Show how the text of this document differs, as a unified diff.")
    ] = None,
) -> None:
    """Compare two states: which documents were added (+), changed (~) or removed (-), and how many blocks that takes.

    What both have in common is not read, however much it is. Without A and B: what the last commit changed.
    """
    memory = call.memory()
    if text is not None:
        difference = memory.text_diff(text, a, b)
        call.show({"a": a, "b": b, "document": text, "diff": difference}, lambda: output.piece(difference))
        return
    found = memory.diff(a, b)
    value = {
        "a": a,
        "b": b,
        "added": list(found.added),
        "changed": list(found.changed),
        "removed": list(found.removed),
        "blocks_added": found.blocks_added,
        "blocks_removed": found.blocks_removed,
        "documents": [each.to_json() for each in found.documents],
    }
    call.show(value, lambda: _print(found))


def _print(found: Difference) -> None:
    for each in found.documents:
        mark = "+" if each.before is None else "-" if each.after is None else "~"
        output.line(f"{mark} {each.source}  {_blocks(each)}")
    if not found.documents:
        output.note("nothing differs")
        return
    kinds = {"added": found.added, "changed": found.changed, "removed": found.removed}
    what = ", ".join(f"{len(sources):,} {kind}" for kind, sources in kinds.items() if sources)
    output.line(f"{what}: {output.many(found.blocks_added, 'block')} more, {found.blocks_removed:,} fewer")


def _blocks(each: DocumentDifference) -> str:
    versions = ""
    if each.before is not None and each.after is not None:
        versions = (
            f"version {each.before.version} → {each.after.version}, " if each.before.version != each.after.version else ""
        )
    parts = [f"+{each.blocks_added:,}"] * bool(each.blocks_added) + [f"-{each.blocks_removed:,}"] * bool(each.blocks_removed)
    return f"({versions}{' '.join(parts) or 'no'} blocks)"
