"""megacontext log: the commits of a branch."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacontext.cli import output
from megacontext.cli.changes import change_facts, change_lines, counted, print_lines
from megacontext.cli.verb import Call

if TYPE_CHECKING:
    from megacontext.engine.memory import Memory
    from megacontext.storage import Commit


def log(
    call: Call,
    reference: Annotated[
        str | None, typer.Argument(metavar="[REF]", help="A branch, tag or commit. Without it: the current branch.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", metavar="N", min=1, help="Show only the newest N.")] = None,
    documents: Annotated[
        int, typer.Option(metavar="N", min=0, help="Name at most N documents of each commit; --json names all.")
    ] = 5,
) -> None:
    """List commits, newest first: when each was made, by whom, and which documents it added (+), changed (~) or removed (-).

    Each commit is the whole memory at that time: show, search, status and diff read any of them. A merge shows what it
    brought to the branch.
    """
    memory = call.memory()
    found = _read(memory, reference, limit)
    if call.json:
        commits = [{**commit_facts(name, commit), **changes} for name, commit, changes in found]
        output.document({"reference": reference or memory.repository.head, "commits": commits})
    else:
        for name, commit, changes in found:
            _print(name, commit, changes, documents)


def commit_facts(name: str, commit: Commit) -> dict[str, Any]:
    """A commit for programs; `time` in ISO 8601, UTC. `records` are of documents with all versions, and of what was removed."""
    return {
        "commit": name,
        "parents": list(commit.parents),
        "time": datetime.fromtimestamp(commit.time, UTC).isoformat(timespec="seconds"),
        "author": commit.author,
        "message": commit.message,
        "records": commit.document_count,
        "blocks": commit.blocks,
    }


def local_time(seconds: float) -> str:
    """Seconds since 1970 as people here write them."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _read(memory: Memory, reference: str | None, limit: int | None) -> Iterator[tuple[str, Commit, dict[str, list[str]]]]:
    """Commits with what they changed; each is read when it is about to be shown."""
    for name, commit in islice(memory.log(reference), limit):
        yield name, commit, change_facts(memory.changes(name))


def _print(name: str, commit: Commit, changes: dict[str, list[str]], documents: int) -> None:
    message = " ".join(commit.message.split())
    output.line("  ".join(each for each in (output.short(name), local_time(commit.time), commit.author, message) if each))
    merged = "".join(f"merge of {output.short(each)}: " for each in commit.parents[1:])
    output.line(f"    {merged}{counted(changes)}; {output.many(commit.blocks, 'block')} in all")
    print_lines(change_lines(changes, documents))
