"""megacontext convert: the same texts in a new memory, for a model with another tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megacontext.cli import output
from megacontext.cli.add import author
from megacontext.cli.failures import FOUND
from megacontext.cli.progress import ingest_progress
from megacontext.cli.verb import Call, quiet_loading
from megacontext.errors import InvalidInput

if TYPE_CHECKING:
    from megacontext.engine.convert import Converted


def convert(
    call: Call,
    directory: Annotated[Path, typer.Argument(metavar="NEW_DIR", help="Where: a new folder, or an earlier conversion.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="The model to convert for: 'bundled', a folder, or a hub id.")],
    branch: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Convert this branch instead of the current one; may be repeated.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Convert all branches, those of sessions too.")] = False,
    history: Annotated[bool, typer.Option("--history", help="One commit for each there has been, not one for all.")] = False,
    skip_pruned: Annotated[
        bool, typer.Option("--skip-pruned", help="Leave out documents that were pruned into an archive that is not at hand.")
    ] = False,
) -> int:
    """Make a memory of the same texts for a model with another tokenizer.

    Every document is tokenised anew and keeps its source, tags, labels and times; conversations can be continued. This memory
    stays as it is. In the end all texts are compared: exit code 1 where one differs. After an interruption, or when this
    memory has grown, the same command goes on where it was. For another GistNet alone, regist is enough.
    """
    if branch and everything:
        raise InvalidInput("give either --branch or --all, not both")
    memory = call.memory()
    quiet_loading(model)
    names = memory.repository.branches() if everything else branch or ()
    with ingest_progress("converting") as listener:
        receipt = memory.convert(
            directory,
            model=model,
            branches=names,
            history=history,
            skip_pruned=skip_pruned,
            author=author(),
            listener=listener,
        )
    for each in receipt.branches:
        for source in each.differing:
            output.warning(f"{source} on {each.branch} is not the same in the new memory")
        for source in each.skipped:
            output.warning(f"{source} on {each.branch} was left out: its raw tokens are in an archive that is not at hand")
    rows = [(each.branch, _told(each)) for each in receipt.branches]
    rows += [("texts", "all the same" if receipt.lossless else "not all the same"), ("time", f"{receipt.seconds:.1f} s")]
    call.show(receipt.to_json(), lambda: output.facts(rows))
    return 0 if receipt.lossless else FOUND


def _told(branch: Converted) -> str:
    parts = [f"{output.many(branch.documents, 'document')} converted", f"{output.many(branch.commits, 'commit')}"]
    parts += [f"{branch.removed:,} removed"] if branch.removed else []
    return f"{', '.join(parts)}; {output.many(branch.tokens, 'token')}, now at {output.short(branch.commit)}"
