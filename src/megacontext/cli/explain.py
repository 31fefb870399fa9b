"""megacontext explain: every entry of the window, with where it comes from and why it is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from megacontext.cli import output
from megacontext.cli.kept import kept_words
from megacontext.cli.sessions import Budget, Focus, Policy, opened, window_facts
from megacontext.cli.text import given_text
from megacontext.cli.verb import Call, Model

if TYPE_CHECKING:
    from megacontext.engine.explain import EntryExplanation

# Tokens that a line of the table has room for.
_KEPT = 3


def explain(
    call: Call,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model would read last; '-' is standard input.")],
    budget: Budget = None,
    policy: Focus = Policy.auto,
    model: Model = None,
) -> None:
    """Explain the window that the model would read for a text: every entry, its source, score and reason.

    Changes nothing.
    """
    memory = call.ready(model)
    query = given_text(text)
    with opened(memory, budget=budget, policy=policy) as session:
        tokens = session.append(query)
        session.refocus(unlimited=True)
        entries = session.explain()
        window = window_facts(session.window)
        used = session.policy.name
    value = {
        "policy": used,
        "query_tokens": tokens,
        "window": window,
        "entries": [each.to_json() for each in entries],
        "missing": list(memory.bundle.missing),
    }
    call.show(value, lambda: _print(entries))


def _print(entries: list[EntryExplanation]) -> None:
    told = any(each.kept for each in entries)
    header = ("entry", "level", "tokens", "cost", "score", "source", *(["keeps"] if told else []), "why")
    rows = ((*_row(each), *([kept_words(each.kept[:_KEPT])] if told else []), each.why) for each in entries)
    output.table(header, rows, right=("entry", "tokens", "cost", "score"))


def _row(entry: EntryExplanation) -> tuple[str, ...]:
    line = f":{entry.line}" if entry.line > 0 else ""
    more = f" and {entry.sources - 1} more" if entry.sources > 1 else ""
    return (
        str(entry.position),
        f"LOD{entry.lod} #{entry.index}" if entry.lod else f"raw #{entry.index}",
        f"{entry.start:,}..{entry.stop - 1:,}",
        str(entry.cost),
        "" if entry.score is None else f"{entry.score:+.3f}",
        f"{entry.source}{line}{more}",
    )
