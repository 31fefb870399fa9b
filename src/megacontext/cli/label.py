"""megacontext label: policy labels and tags of documents and of lines of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacontext.cli import output, place
from megacontext.cli.add import author
from megacontext.cli.verb import Call
from megacontext.errors import UnknownReference

if TYPE_CHECKING:
    from megacontext.engine.label import Labelled, Lines
    from megacontext.engine.memory import Memory

_LINES = re.compile(r"(.+):(\d{1,18})(?:-(\d{1,18}))?", re.DOTALL)


def label(
    call: Call,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[DOCUMENT[:LINES]]",
            help="A document by its source or the end of it, with lines such as :20 or :20-35 or without; or a folder, or a "
            "pattern with * and ?, for all its documents. Without it: list the labels of the memory.",
        ),
    ] = None,
    add: Annotated[list[str] | None, typer.Option(metavar="LABEL", help="Put this label on it; may be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="LABEL", help="Take this label off it; may be repeated.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Tag the document; may be repeated.")] = None,
    untag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Take this tag off it; may be repeated.")] = None,
    message: Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="What to write into the log.")] = "",
) -> None:
    """Label a document or lines of it, or show its labels.

    A label is policy: who calls with --deny LABEL, or has MEGACONTEXT_DENY set, gets nothing of what carries it, neither as
    text nor in a gist, a search or a list, at no commit and on no branch that holds the same blocks. Lines are rounded
    outwards to blocks of 32 tokens. A new version of a document has the labels of the one that it replaces: all of it, if
    lines were labelled.

    Labels of all branches and tags count, so one that is taken off has to be taken off on every branch that has it. A merge
    brings labels along and takes none off; only a branch that has nothing of its own, and merely moves on to where the
    other is, has the other's labels then.
    """
    memory = call.memory()
    if what is None:
        labels = memory.labels()
        value = {"labels": [{"label": name, "blocks": blocks} for name, blocks in labels.items()]}
        call.show(value, lambda: _print_all(labels))
        return
    what = place.source_pattern(memory.repository.root, what)
    document, lines = _parsed(memory, what)
    changes: dict[str, Any] = {"add": add or (), "remove": remove or (), "tag": tag or (), "untag": untag or ()}
    if lines is not None:
        found = [memory.label(document, lines=lines, **changes, message=message, author=author())]
    else:
        found = memory.label_all(document, **changes, message=message, author=author())
    value = found[0].to_json() if len(found) == 1 else {"documents": [each.to_json() for each in found]}
    call.show(value, lambda: _print(found[0]) if len(found) == 1 else _print_each(found))


def _parsed(memory: Memory, what: str) -> tuple[str, Lines | None]:
    """A document, and lines of it; a source may look like one with lines."""
    match = _LINES.fullmatch(what)
    if match is None:
        return what, None
    try:
        return memory.find_document(what).source, None
    except UnknownReference:
        return match[1], (int(match[2]), int(match[3] or match[2]))


def _print_each(found: list[Labelled]) -> None:
    for each in found:
        output.line(f"{each.source}: {_labels(each)}; tags {', '.join(each.tags) or 'none'}")
    output.line(f"{output.many(len(found), 'document')}; commit {output.short(found[0].commit)}")


def _labels(found: Labelled) -> str:
    return (
        ", ".join(f"{name} on {blocks:,} of {output.many(found.of, 'block')}" for name, blocks in found.blocks.items())
        or "no labels"
    )


def _print(found: Labelled) -> None:
    output.facts(
        [
            ("document", found.source),
            ("labels", _labels(found)),
            ("tags", ", ".join(found.tags) or "none"),
            ("commit", output.short(found.commit)),
        ]
    )


def _print_all(labels: dict[str, int]) -> None:
    for name, blocks in labels.items():
        output.line(f"{name}  {output.many(blocks, 'block')}")
    if not labels:
        output.note("no labels; megacontext label DOCUMENT --add LABEL puts one on a document")
