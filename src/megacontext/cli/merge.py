"""megacontext merge and revert: what another branch did, and what a commit did, taken over or back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from megacontext.cli import output
from megacontext.cli.add import author
from megacontext.cli.changes import change_lines, counted, print_lines
from megacontext.cli.verb import Call, Model
from megacontext.errors import InvalidInput

if TYPE_CHECKING:
    from megacontext.engine.merge import Merged
    from megacontext.engine.merge_plan import Choice

Message = Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="What to write into the log.")]
_SHOWN = 20


def merge(
    call: Call,
    reference: Annotated[str, typer.Argument(metavar="REF", help="The branch, session, tag or commit to take over.")],
    ours: Annotated[bool, typer.Option("--ours", help="Where both changed a document: keep this branch's.")] = False,
    theirs: Annotated[bool, typer.Option("--theirs", help="Where both changed a document: take the other's.")] = False,
    both: Annotated[
        bool, typer.Option("--both", help="Where both changed a document: keep this branch's, and the other's as SOURCE@REF.")
    ] = False,
    message: Message = "",
    model: Model = None,
) -> None:
    """Bring what another branch has changed since the two parted into the current branch.

    Its new and changed documents are added, with the gists that they have, what it removed is removed, and what is the
    same on both sides costs nothing. A document that both changed is a conflict: all are listed, nothing is written and the
    exit code is 1, unless one of --ours, --theirs and --both says what to do. Sessions of `generate` are branches named
    sessions/NAME.
    """
    chosen: list[Choice] = []
    for choice, wanted in (("ours", ours), ("theirs", theirs), ("both", both)):
        chosen += [choice] if wanted else []  # type: ignore[list-item]
    if len(chosen) > 1:
        raise InvalidInput(f"choose one of {' and '.join(f'--{each}' for each in chosen)}")
    memory = call.memory(model)
    merged = memory.merge(reference, choice=chosen[0] if chosen else None, message=message, author=author())
    call.show(merged.to_json(), lambda: _print(merged, f"nothing to merge: all of {reference} is here already"))
    if merged.ahead:
        output.warning(f"note: {reference} is being written; what it has not committed yet is not in")


def revert(
    call: Call,
    commit: Annotated[str, typer.Argument(metavar="COMMIT", help="The commit to undo; a branch or tag means its commit.")],
    message: Message = "",
    model: Model = None,
) -> None:
    """Undo what a commit changed, in a new commit: what it added is removed, what it changed or removed comes back.

    A document that was changed again since is a conflict: all are listed, nothing is written and the exit code is 1. Of a
    merge, what it brought is undone.
    """
    reverted = call.memory(model).revert(commit, message=message, author=author())
    call.show(reverted.to_json(), lambda: _print(reverted, f"nothing to undo: nothing of {commit} is left"))


def _print(merged: Merged, nothing: str) -> None:
    for source in merged.refused:
        output.warning(f"note: {source} is not taken over: it, or its text, was erased from this memory")
    if merged.nothing:
        output.line(nothing)
        return
    facts = merged.to_json()
    print_lines(change_lines(facts, _SHOWN))
    if merged.conflicts:
        output.line(f"decided by your choice: {', '.join(merged.conflicts)}")
    how = "moved ahead to" if merged.fast_forward else "commit"
    output.line(f"{counted(facts)}; {how} {output.short(merged.commit)}")
