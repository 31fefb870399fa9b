"""megacontext tag: names for commits that stay where they are."""

from __future__ import annotations

from typing import Annotated

import typer

from megacontext.cli import output
from megacontext.cli.verb import Call
from megacontext.errors import InvalidInput


def tag(
    call: Call,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The tag to create. Without it: list them.")] = None,
    at: Annotated[str | None, typer.Argument(metavar="[REF]", help="A branch, tag or commit. Without it: here.")] = None,
    delete: Annotated[
        str | None, typer.Option("--delete", "-d", metavar="NAME", help="Delete this tag. Its commit stays.")
    ] = None,
) -> None:
    """List, create or delete tags.

    A tag names one commit for good, where a branch moves on: show, search, status and diff read the memory as it was.
    """
    memory = call.memory()
    repository = memory.repository
    if delete is not None:
        if name is not None:
            raise InvalidInput("give either a NAME to create or --delete NAME, not both")
        repository.delete_tag(delete)
        call.show({"deleted": delete}, lambda: output.line(f"deleted {delete}"))
    elif name is not None:
        commit = memory.tag(name, at)
        call.show({"created": name, "commit": commit}, lambda: output.line(f"tagged {output.short(commit)} as {name}"))
    else:
        tags = [{"name": each, "commit": repository.resolve(each)} for each in repository.tags()]
        call.show({"tags": tags}, lambda: _print(tags))


def _print(tags: list[dict[str, str]]) -> None:
    for each in tags:
        output.line(f"{each['name']}  {output.short(each['commit'])}")
