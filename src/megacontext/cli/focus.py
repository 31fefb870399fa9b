"""megacontext focus: what the window would look at for a text."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacontext.cli import output
from megacontext.cli.sessions import Budget, Focus, Policy, opened, window_facts
from megacontext.cli.text import given_text
from megacontext.cli.verb import Call, Model

if TYPE_CHECKING:
    from megacontext.core import FocusScores, WorkingContext
    from megacontext.engine.explain import EditExplanation
    from megacontext.engine.focus import Refocus


def focus(
    call: Call,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model would read last; '-' is standard input.")],
    budget: Budget = None,
    policy: Focus = Policy.auto,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=0, help="Show at most N of the edits that were refused.")
    ] = 5,
    model: Model = None,
) -> None:
    """Show what the memory would bring into focus for a text, and what it would let go.

    Draws the window as a strip, oldest first, before and after, and lists every expansion and collapse with its score.
    Changes nothing.
    """
    memory = call.ready(model)
    query = given_text(text)
    from megacontext.engine.explain import explain_edits

    with opened(memory, budget=budget, policy=policy) as session:
        tokens = session.append(query)
        result = session.refocus(unlimited=True)
        used = session.policy.name
    edits = explain_edits(result)
    chosen = [each for each in edits if each.chosen]
    refused = [each for each in edits if not each.chosen][:limit]
    value = {
        "policy": used,
        "query_tokens": tokens,
        "before": _window(result.before, result.scores),
        "after": _window(result.after),
        "edits": [each.to_json() for each in chosen],
        "refused": [each.to_json() for each in refused],
        "missing": list(memory.bundle.missing),
    }
    call.show(value, lambda: _print(result, used, chosen, refused))


def drawn(window: WorkingContext, scores: FocusScores | None = None) -> str:
    """The strip of a window, as wide as the terminal."""
    from megacontext.core import strip

    width = min(shutil.get_terminal_size().columns, 100)
    return strip(window, width, scores, ascii_only=not output.speaks_unicode())


def _window(window: WorkingContext, scores: FocusScores | None = None) -> dict[str, Any]:
    return {**window_facts(window), "strip": drawn(window, scores)}


def _print(result: Refocus, policy: str, chosen: list[EditExplanation], refused: list[EditExplanation]) -> None:
    from megacontext.core import legend
    from megacontext.core.render import summary

    output.line(legend(ascii_only=not output.speaks_unicode()))
    output.line(f"\nbefore: {summary(result.before)}")
    output.line(drawn(result.before, result.scores))
    output.line(f"\nafter {len(chosen)} edits by {policy}: {summary(result.after)}")
    output.line(drawn(result.after))
    for title, edits in (("edits", chosen), ("refused", refused)):
        if edits:
            output.line(f"\n{title}:")
        for each in edits:
            output.line(f"  {each.score:+.3f}  {each.cost:+5d}  {each.edit}: {each.reason}")
