"""megacontext init: an empty memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megacontext.cli import output, place
from megacontext.cli.verb import Call, quiet_loading


def init(
    call: Call,
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help=f"Where: a new or an empty folder. Without it: -C, else ./{place.DEFAULT}."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="The language model to remember for: 'bundled', a folder with a model, or a hub id such as "
            "HuggingFaceTB/SmolLM3-3B. A memory belongs to its model's tokenizer.",
        ),
    ] = "bundled",
) -> None:
    """Create an empty memory.

    A memory is a folder. It keeps everything that you add, in full, and is read by one kind of language model.
    """
    from megacontext.engine.api import init as create

    quiet_loading(model)
    memory = create(place.new_memory(directory, call.directory), model=model)
    missing = memory.bundle.missing
    for lack in missing:
        output.warning(f"note: {lack}")
    status = memory.status()
    facts = {"path": status.path, "model": status.model, "branch": status.branch, "commit": status.commit}
    call.show({**facts, "missing": list(missing)}, lambda: output.line(f"created an empty memory in {status.path}"))
