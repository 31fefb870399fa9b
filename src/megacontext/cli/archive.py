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
from megacontext.cli.verb import Call, Model
from megacontext.errors import InvalidInput, MemoryNotFound

if TYPE_CHECKING:
    from megacontext.storage.erasure.rewrite import Remake
    from megacontext.storage.export import Export
    from megacontext.storage.gists import LayerSpec
    from megacontext.storage.importing import Imported
    from megacontext.storage.received import Remakes

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
    without_pruned: Annotated[
        bool, typer.Option("--without-pruned", help="Leave the raw tokens of pruned documents out; their gists come along.")
    ] = False,
) -> None:
    """Write a memory, or branches of it, to one file.

    The file is a plain tar archive: manifest.json says what it is, objects.txt lists what follows, and any tool reads it.
    Pipe it through gzip or zstd if it is to be smaller. Tags of exported commits come along. What is pruned comes from its
    archive and is pruned again where it is imported.
    """
    from megacontext.storage import files
    from megacontext.storage.export import prepare_export

    if file == PIPE and call.json:
        raise InvalidInput("stdout cannot hold both the archive and JSON: name a file")
    if file != PIPE and Path(file).exists():
        raise InvalidInput(f"{file} is there already: remove it, or choose another name")
    repository = call.memory().repository
    made = prepare_export(repository, at=at, branches=branches, history=history, without_pruned=without_pruned)
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
    skip_erased: Annotated[
        bool,
        typer.Option("--skip-erased", help="Leave out documents that were erased from this memory, and take the rest."),
    ] = False,
    model: Model = None,
) -> None:
    """Read an archive into a new memory, or beside what a memory holds.

    Everything is verified before anything is seen: an archive that is cut, damaged or made to do harm changes nothing. A
    memory takes in archives of its own tokenizer; its own branches stay as they are. What was erased from it does not come
    back: an archive that holds such is refused, or taken without it, whereby its commits get other names.
    """
    from megacontext.storage.importing import import_archive

    root = place.new_memory(directory, call.directory)
    with _opened(file) as source, byte_progress("importing") as progress:
        done = import_archive(
            source,
            root,
            prefix=name,
            skip_erased=skip_erased,
            remake=_remake(root, model),
            author=author(),
            progress=progress,
        )
    value = {
        "path": str(done.path),
        "branches": done.branches,
        "tags": done.tags,
        "objects": done.objects,
        "bytes": done.bytes,
        "new": done.new,
        "pruned": {"archived": done.pruned, "left_out": done.left_out},
        "skipped": list(done.skipped),
        "dropped_layers": list(done.dropped),
    }
    call.show(value, lambda: _print_import(done))


def _remake(root: Path, model: str | None) -> Remakes:
    """What makes the gists above documents that are left out again, with the model of the memory that is there."""

    def remake(spec: LayerSpec) -> Remake | None:
        from megacontext.engine.erase import remaker
        from megacontext.engine.memory import Memory

        try:
            memory = Memory.open(root, model=model)
        except MemoryNotFound:
            return None
        return remaker(memory.models.base, memory.models.gists, spec)

    return remake


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
        "pruned": {"archived": made.archived, "left_out": made.left_out},
    }


def _print_export(file: str, made: Export) -> None:
    names = ", ".join(made.manifest.branches)
    history = " with its history" if made.manifest.history else ""
    output.line(f"exported {names}{history} to {file}: {output.many(made.manifest.objects, 'object')}, {made.size:,} bytes")
    if made.archived:
        output.line(f"{made.archived:,} of them are pruned and came from the archive")
    if made.left_out:
        output.line(f"of {made.left_out:,} of them the raw tokens were left out, since they are pruned")


def _print_import(done: Imported) -> None:
    for name, commit in done.branches.items():
        output.line(f"branch {name} at {output.short(commit)}")
    for name, commit in done.tags.items():
        output.line(f"tag {name} at {output.short(commit)}")
    if done.pruned or done.left_out:
        more = f"; of {done.left_out:,} more there are gists only: megacontext restore --archive" if done.left_out else ""
        output.line(f"{done.pruned:,} objects are pruned{more}")
    for source in done.skipped:
        output.line(f"left out {source}: it was erased from this memory")
    for layer in done.dropped:
        output.line(f"dropped the gists of {output.short(layer)}: its GistNet is not at hand; megacontext regist lays it")
    output.line(
        f"imported into {done.path}: {output.many(done.objects, 'object')}, {done.bytes:,} bytes, {done.new:,} of them new"
    )
