"""megacontext tag: names for commits that stay where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacontext.cli import output
from megacontext.cli.add import author
from megacontext.cli.verb import Call
from megacontext.errors import InvalidInput

if TYPE_CHECKING:
    from megacontext.storage import Repository


def tag(
    call: Call,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The tag to create. Without it: list them.")] = None,
    at: Annotated[str | None, typer.Argument(metavar="[REF]", help="A branch, tag or commit. Without it: here.")] = None,
    delete: Annotated[
        str | None, typer.Option("--delete", "-d", metavar="NAME", help="Delete this tag. Its commit stays.")
    ] = None,
    protect: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Protect this tag: nothing that it leads to is erased or pruned."),
    ] = None,
    unprotect: Annotated[str | None, typer.Option(metavar="NAME", help="Lift that.")] = None,
) -> None:
    """List, create, delete or protect tags.

    A tag names one commit for good, where a branch moves on: show, search, status and diff read the memory as it was.
    """
    memory = call.memory()
    repository = memory.repository
    wanted = [option for option in (name, delete, protect, unprotect) if option is not None]
    if len(wanted) > 1:
        raise InvalidInput("give one of: a NAME to create, --delete NAME, --protect NAME, --unprotect NAME")
    if protect is not None or unprotect is not None:
        _protect(call, repository, wanted[0], protect is not None)
    elif delete is not None:
        repository.delete_tag(delete)
        call.show({"deleted": delete}, lambda: output.line(f"deleted {delete}"))
    elif name is not None:
        commit = memory.tag(name, at)
        call.show({"created": name, "commit": commit}, lambda: output.line(f"tagged {output.short(commit)} as {name}"))
    else:
        tags = [_facts(repository, each) for each in repository.tags()]
        call.show({"tags": tags}, lambda: _print(tags))


def _protect(call: Call, repository: Repository, name: str, protected: bool) -> None:
    from megacontext.storage.audit import append

    changed = repository.refs.protect(name, protected)
    if changed:
        append(repository.root, "protect" if protected else "unprotect", {"tag": name}, author=author())
    word = "protected" if protected else "not protected"
    also = "" if changed else " already"
    call.show({"tag": name, "protected": protected, "changed": changed}, lambda: output.line(f"{name} is {word}{also}"))


def _facts(repository: Repository, name: str) -> dict[str, Any]:
    return {"name": name, "commit": repository.resolve(name), "protected": repository.refs.protected("tags", name)}


def _print(tags: list[dict[str, Any]]) -> None:
    for each in tags:
        output.line(f"{each['name']}  {output.short(each['commit'])}{'  protected' if each['protected'] else ''}")
