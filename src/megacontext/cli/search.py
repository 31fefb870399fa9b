"""megacontext search: full-text search over the blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from megacontext.cli import output
from megacontext.cli.text import beginning, given_text
from megacontext.cli.verb import Call
from megacontext.errors import InvalidInput

if TYPE_CHECKING:
    from megacontext.engine.memory import Hit


def search(
    call: Call,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for; '-' reads it from standard input.")],
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most N hits.")] = 10,
    at: Annotated[
        str | None, typer.Option(metavar="REF", help="Search this branch, tag or commit instead of the current branch.")
    ] = None,
) -> None:
    """Find the blocks of text that match a query best (BM25 over tokens), best first. Needs no model."""
    text = given_text(query)
    if not text.strip():
        raise InvalidInput("the query is empty: say what to look for")
    hits = call.memory().search(text, limit, at)
    call.show({"query": text, "hits": [hit.to_json() for hit in hits]}, lambda: _print(hits))


def _print(hits: list[Hit]) -> None:
    if not hits:
        output.note("nothing matches")
    for hit in hits:
        line = f":{hit.line}" if hit.line > 0 else ""
        output.line(f"{hit.source}{line}  (block {hit.block}, score {hit.score:.2f})")
        output.line(f"    {beginning(hit.text, 100)}")
