"""megacontext erase: documents are destroyed in everything that the memory holds, with a receipt."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacontext.cli import output, place
from megacontext.cli.add import author
from megacontext.cli.rm import DryRun
from megacontext.cli.verb import Call, Model
from megacontext.errors import InvalidInput

if TYPE_CHECKING:
    from megacontext.engine.erase import Outlook

_KINDS = {"tokens": "blocks of tokens", "gists": "gists", "names": "spellings of names", "texts": "pieces of text"}


def erase(
    call: Call,
    documents: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DOCUMENT]...", help=place.SOURCE),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Only versions in whose text this occurs; a regular expression between slashes."),
    ] = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. Needed where there is no terminal to ask on.")] = False,
    include_protected: Annotated[
        bool, typer.Option("--include-protected", help="Also change what protected tags lead to.")
    ] = False,
    finish: Annotated[bool, typer.Option("--finish", help="Only finish an erasure that was interrupted.")] = False,
    model: Model = None,
) -> None:
    """Destroy documents: in all versions, on every branch and tag, in all of history, in journals and indexes.

    There is no way back. Every commit that holds them is written anew without them, and so gets another name; gists
    above them are made again. Before and after, every file of the memory is searched for their tokens, gists, names and
    text: the receipt has the counts, and so has the audit log. They cannot come back by add, merge or import, unless add is
    told --allow-erased. Copies that have left this folder (backups, archives, clones) are not reached.
    """
    if finish:
        _finish(call)
        return
    from megacontext.engine.erase import Eraser

    memory = call.memory(model)
    eraser = Eraser(memory.repository, lambda: memory.tokenizer, lambda: (memory.models.base, memory.models.gists))
    outlook = eraser.outlook(place.source_patterns(memory.repository.root, documents), match=match)
    if dry_run:
        call.show({**outlook.to_json(), "dry_run": True}, lambda: _tell(outlook))
        return
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidInput("this destroys documents for good: look at it with --dry-run, then give --yes")
        _tell(outlook, output.note)
        if not typer.confirm("Destroy this for good?", err=True):
            raise InvalidInput("nothing was erased")
    receipt = eraser.erase(outlook, author=author(), include_protected=include_protected)
    value = {**receipt, "erased": [each.source for each in outlook.documents], "dry_run": False}
    call.show(value, lambda: _print(receipt))


def _finish(call: Call) -> None:
    from megacontext.storage.erasure.finish import erasing, finish

    root = place.find_memory(call.directory)
    with erasing(root):
        receipt = finish(root)
    nothing = "no erasure was interrupted"
    call.show(receipt or {"finished": False}, lambda: _print(receipt) if receipt else output.line(nothing))


def _tell(outlook: Outlook, line: Any = output.line) -> None:
    for each in outlook.documents:
        what = "" if each.whole else ", of more; the name stays"
        size = f"{output.many(each.tokens, 'token')} in {output.many(each.blocks, 'block')}"
        line(f"{each.source}: {output.many(each.versions, 'version')}{what}, {size}")
    where = ", ".join(
        f"{kind} {', '.join(names)}" for kind, names in (("branches", outlook.branches), ("tags", outlook.tags)) if names
    )
    line(f"{outlook.commits:,} commits are written anew; they get other names ({where})")
    for tag in outlook.protected:
        line(f"protected: tag {tag}; it takes --include-protected")
    for source in outlook.copies:
        line(f"stays: {source} has a text that goes elsewhere")


def _print(receipt: dict[str, Any]) -> None:
    output.line(f"erased {output.many(receipt['documents'], 'document')} in {output.many(receipt['versions'], 'version')}")
    output.line(f"wrote {receipt['commits']:,} commits anew, moved {receipt['refs']:,} branches and tags")
    before, after = receipt["before"], receipt["after"]
    for kind, name in _KINDS.items():
        kept = receipt["shared"][kind]
        also = f"; {kept:,} more are those of documents that stay, too" if kept else ""
        output.line(f"{name}: {before[kind]['found']:,} found before, {after[kind]['found']:,} after{also}")
    output.line(f"searched {output.many(before['files'], 'file')} before, {after['files']:,} after ({after['bytes']:,} bytes)")
    for layer in receipt["dropped_layers"]:
        output.line(f"dropped the gists of {output.short(layer)}: its GistNet is not at hand; megacontext regist lays it")
