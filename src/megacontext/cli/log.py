"""megacontext log: the commits of a branch."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacontext.cli import output
from megacontext.cli.verb import Call

if TYPE_CHECKING:
    from megacontext.storage import Commit


def log(
    call: Call,
    reference: Annotated[
        str | None, typer.Argument(metavar="[REF]", help="A branch, tag or commit. Without it: the current branch.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", metavar="N", min=1, help="Show only the newest N.")] = None,
) -> None:
    """List commits, newest first: every `add` makes one, and each is the whole memory at that time."""
    memory = call.memory()
    commits = list(islice(memory.log(reference), limit))
    value = {
        "reference": reference or memory.repository.head,
        "commits": [commit_facts(name, commit) for name, commit in commits],
    }
    call.show(value, lambda: _print(commits))


def commit_facts(name: str, commit: Commit) -> dict[str, Any]:
    """A commit for programs; `time` in ISO 8601, UTC."""
    return {
        "commit": name,
        "parents": list(commit.parents),
        "time": datetime.fromtimestamp(commit.time, UTC).isoformat(timespec="seconds"),
        "author": commit.author,
        "message": commit.message,
        "documents": commit.document_count,
        "blocks": commit.blocks,
    }


def local_time(seconds: float) -> str:
    """Seconds since 1970 as people here write them."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _print(commits: list[tuple[str, Commit]]) -> None:
    header = ("commit", "time", "author", "documents", "blocks", "message")
    rows = (
        (
            output.short(name),
            local_time(c.time),
            c.author,
            f"{c.document_count:,}",
            f"{c.blocks:,}",
            " ".join(c.message.split()),
        )
        for name, c in commits
    )
    output.table(header, rows, right=("documents", "blocks"))
