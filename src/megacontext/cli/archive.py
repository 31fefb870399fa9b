"""megacontext export and import: a memory as one file, and back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from megacontext.cli import output, place
from megacontext.cli.add import author
from megacontext.cli.progress import byte_progress
from megacontext.cli.verb import Call
from megacontext.errors import InvalidInput

if TYPE_CHECKING:
    from megacontext.storage.export import Export
    from megacontext.storage.importing import Imported

PIPE = "-"


def export(
    call: Call,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The archive to write; it must not be there yet. '-' is stdout.")],
    at: Annotated[
        str | None, typer.Option(metavar="REF", help="Export what this branch, tag or commit holds, not the current branch.")
    ] = None,
    branches: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Export these branches, separated by commas, or 'all'.")
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="With all commits before. Without it only what there is now.")
    ] = False,
) -> None:
    """Write a memory, or branches of it, to one file.

    The file is a plain tar archive: manifest.json says what it is, objects.txt lists what follows, and any tool reads it.
    Pipe it through gzip or zstd if it is to be smaller. Tags of exported commits come along.
    """
    from megacontext.storage import files
    from megacontext.storage.export import prepare_export

    if file == PIPE and call.json:
        raise InvalidInput("stdout cannot hold both the archive and JSON: name a file")
    if file != PIPE and Path(file).exists():
        raise InvalidInput(f"{file} is there already: remove it, or choose another name")
    made = prepare_export(call.memory().repository, at=at, branches=branches, history=history)
    for name in made.behind:
        output.warning(f"note: {name} is being written, or is of an earlier format: what is in no commit yet is left out")
    with byte_progress("exporting") as progress:
        if file == PIPE:
            for part in made.parts(progress):
                sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            return
        files.write_whole(Path(file), made.parts(progress))
    call.show(_exported(file, made), lambda: _print_export(file, made))


def import_(
    call: Call,
    file: Annotated[str, typer.Argument(metavar="FILE", help="An archive of `megacontext export`. '-' is standard input.")],
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]",
            help=f"A new or an empty folder, or a memory to add to. Without it: -C, else ./{place.DEFAULT}.",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--as", metavar="NAME", help="In a memory that is there: call the new branches NAME/….")
    ] = "",
) -> None:
    """Read an archive into a new memory, or beside what a memory holds.

    Everything is verified before anything is seen: an archive that is cut, damaged or made to do harm changes nothing. A
    memory takes in archives of its own tokenizer; its own branches stay as they are.
    """
    from megacontext.storage.importing import import_archive

    root = place.new_memory(directory, call.directory)
    with _opened(file) as source, byte_progress("importing") as progress:
        done = import_archive(source, root, prefix=name, author=author(), progress=progress)
    value = {
        "path": str(done.path),
        "branches": done.branches,
        "tags": done.tags,
        "objects": done.objects,
        "bytes": done.bytes,
        "new": done.new,
    }
    call.show(value, lambda: _print_import(done))


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == PIPE:
        yield sys.stdin.buffer
        return
    if not Path(file).is_file():
        raise InvalidInput(f"there is no file {file}")
    with open(file, "rb") as source:
        yield source


def _exported(file: str, made: Export) -> dict[str, Any]:
    manifest = made.manifest
    return {
        "file": file,
        "size": made.size,
        "branches": dict(manifest.branches),
        "tags": dict(manifest.tags),
        "history": manifest.history,
        "objects": manifest.objects,
        "behind": list(made.behind),
    }


def _print_export(file: str, made: Export) -> None:
    names = ", ".join(made.manifest.branches)
    history = " with its history" if made.manifest.history else ""
    output.line(f"exported {names}{history} to {file}: {made.manifest.objects:,} objects, {made.size:,} bytes")


def _print_import(done: Imported) -> None:
    for name, commit in done.branches.items():
        output.line(f"branch {name} at {output.short(commit)}")
    for name, commit in done.tags.items():
        output.line(f"tag {name} at {output.short(commit)}")
    output.line(f"imported into {done.path}: {done.objects:,} objects, {done.bytes:,} bytes, {done.new:,} of them new")
