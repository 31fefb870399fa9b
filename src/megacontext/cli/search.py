"""megacontext search: by text, by tokens, by gists, or by all of them."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from megacontext.cli import output, place
from megacontext.cli.progress import count_progress
from megacontext.cli.text import beginning, given_text, moment
from megacontext.cli.verb import Call, quiet_loading
from megacontext.errors import InvalidInput

if TYPE_CHECKING:
    from megacontext.engine.memory import Hit


class Mode(StrEnum):
    """Ways to search; as `engine.searching.SearchMode`, which would be slow to import here."""

    TEXT = "text"
    TOKENS = "tokens"
    GISTS = "gists"
    HYBRID = "hybrid"


def search(
    call: Call,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for; '-' reads it from standard input.")],
    mode: Annotated[Mode, typer.Option(help="text and tokens need no model; gists and hybrid load it.")] = Mode.TEXT,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="At most N hits.")] = 10,
    source: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only sources like this, such as '*.py', src/ or notes.md.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="Only documents with this tag, or with all of several.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only what was added at this time or later, such as 2026-01-31.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Only what was added before this time.")] = None,
    at: Annotated[
        str | None, typer.Option(metavar="REF", help="Search this branch, tag or commit instead of the current branch.")
    ] = None,
) -> None:
    """Find the blocks of text that match a query best, best first.

    --mode text looks for the words of the query as they are written, whatever their case, inside longer words too, and
    requires "phrases in quotes"; no other sign has a meaning. tokens ranks by the tokens that the model reads (BM25). gists
    goes down the tree to the blocks whose gists are most like the query's. hybrid makes one ranking of all three.
    """
    text = given_text(query)
    if not text.strip():
        raise InvalidInput("the query is empty: say what to look for")
    times = [moment(each) if each is not None else None for each in (since, until)]
    memory = call.memory()
    source = source and place.source_pattern(memory.repository.root, source)
    if mode in (Mode.GISTS, Mode.HYBRID):
        quiet_loading(memory.model)
    if mode is Mode.HYBRID and memory.models.gists is None:
        output.warning(f"note: {memory.model} has no GistNet: the ranking is made of text and tokens only")
    with count_progress("indexing", "segments") as progress:
        memory.prepare(mode.value, at, progress)
    hits = memory.search(text, limit, at, mode=mode.value, source=source, tags=tag or (), since=times[0], until=times[1])
    call.show({"query": text, "mode": mode.value, "hits": [hit.to_json() for hit in hits]}, lambda: _print(hits))


def _print(hits: list[Hit]) -> None:
    if not hits:
        output.note("nothing matches")
    for hit in hits:
        line = f":{hit.line}" if hit.line > 0 else ""
        output.line(f"{hit.source}{line}  (block {hit.block}, {_worth(hit)})")
        output.line(f"    {beginning(hit.text, 100)}")


def _worth(hit: Hit) -> str:
    places = ", ".join(f"{name} #{place}" for name, place in hit.ranks.items())
    return places or f"score {hit.score:.2f}"
