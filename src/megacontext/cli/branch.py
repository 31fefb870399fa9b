"""megacontext branch and checkout: lines of history in one memory."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from megacontext.cli import output
from megacontext.cli.verb import Call
from megacontext.errors import InvalidInput


def branch(
    call: Call,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The branch to create. Without it: list them.")] = None,
    at: Annotated[
        str | None, typer.Argument(metavar="[REF]", help="Where it starts: a branch, tag or commit. Without it: here.")
    ] = None,
    delete: Annotated[
        str | None, typer.Option("--delete", "-d", metavar="NAME", help="Delete this branch. Its commits stay.")
    ] = None,
) -> None:
    """List, create or delete branches.

    A branch costs nothing: it shares all it holds with the one that it starts from. Sessions of `generate` live on
    branches named sessions/NAME.
    """
    repository = call.memory().repository
    if delete is not None:
        if name is not None:
            raise InvalidInput("give either a NAME to create or --delete NAME, not both")
        repository.refs.branch(delete)
        repository.delete_branch(delete)
        call.show({"deleted": delete}, lambda: output.line(f"deleted {delete}"))
    elif name is not None:
        commit = repository.create_branch(name, at)
        call.show({"created": name, "commit": commit}, lambda: output.line(f"created {name} at {output.short(commit)}"))
    else:
        head = repository.head
        branches = [{"name": each, "commit": repository.refs.branch(each)} for each in repository.branches()]
        call.show({"current": head, "branches": branches}, lambda: _print(head, branches))


def checkout(
    call: Call,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The branch that commands work on from now on.")],
    at: Annotated[
        str | None, typer.Argument(metavar="[REF]", help="With -b: where the branch starts. Without it: here.")
    ] = None,
    create: Annotated[bool, typer.Option("--create", "-b", help="Create the branch first.")] = False,
) -> None:
    """Make another branch the current one.

    Tags and old commits are read with --at; to go on from one, start a branch there: checkout -b NAME REF.
    """
    memory = call.memory()
    if at is not None and not create:
        raise InvalidInput(f"say checkout -b {name} {at} to start the branch {name} there")
    if create:
        memory.branch(name, at)
    commit = memory.checkout(name)
    call.show({"current": name, "commit": commit}, lambda: output.line(f"on {name} at {output.short(commit)}"))


def _print(head: str, branches: list[dict[str, Any]]) -> None:
    for each in branches:
        mark = "*" if each["name"] == head else " "
        output.line(f"{mark} {each['name']}  {output.short(each['commit'])}")
