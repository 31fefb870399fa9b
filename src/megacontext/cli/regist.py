"""megacontext regist: the gists of another or a retrained GistNet over what the memory holds, or away with them."""

from __future__ import annotations

from typing import Annotated

import typer

from megacontext.cli import output
from megacontext.cli.add import author
from megacontext.cli.layers import tell_behind
from megacontext.cli.progress import regist_progress
from megacontext.cli.verb import Call, Model, quiet_loading
from megacontext.errors import InvalidInput


def regist(
    call: Call,
    model: Model = None,
    branch: Annotated[str | None, typer.Option(metavar="NAME", help="Work on this branch instead of the current one.")] = None,
    remove: Annotated[
        str | None,
        typer.Option(metavar="FINGERPRINT", help="Drop this layer of gists, as status lists it (the first 4 digits may do)."),
    ] = None,
) -> None:
    """Lay the gists of a model's GistNet over the memory.

    One memory can have gists of several GistNets: of two models with the same tokenizer, or of one that was trained again.
    Writing with one leaves the others behind; this command brings a layer up to date. Tokens are never touched. After an
    interruption the same command goes on where it was.
    """
    if remove is not None:
        if model is not None:
            raise InvalidInput("give either --model to lay its gists or --remove FINGERPRINT to drop some, not both")
        _remove(call, remove, branch)
        return
    memory = call.memory(model)
    quiet_loading(memory.model)
    with regist_progress() as listener:
        receipt = memory.regist(branch=branch, author=author(), listener=listener)
    rows = [
        ("layer", f"{output.short(receipt.fingerprint)} of {memory.model}"),
        ("blocks", f"{receipt.blocks:,}, {receipt.made:,} of them new"),
        *([("archived", f"{receipt.archived:,} of them, read in their archive; they stay pruned")] if receipt.archived else []),
        ("commit", f"{output.short(receipt.commit)} on {receipt.branch}"),
        ("time", f"{receipt.seconds:.1f} s, {receipt.made / max(receipt.seconds, 1e-9):,.0f} blocks/s"),
    ]
    layers = memory.layers(receipt.branch)
    tell_behind(layers)
    value = {**receipt.to_json(), "model": memory.model, "layers": [each.to_json() for each in layers]}
    call.show(value, lambda: output.facts(rows))


def _remove(call: Call, digits: str, branch: str | None) -> None:
    fingerprint, commit = call.memory().remove_layer(digits, branch=branch, author=author())
    call.show(
        {"removed": fingerprint, "commit": commit},
        lambda: output.line(f"dropped the gists of {output.short(fingerprint)} in {output.short(commit)}"),
    )
