"""megacontext audit: what was taken away from the memory, when and by whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from megacontext.cli import failures, output, place
from megacontext.cli.log import local_time
from megacontext.cli.verb import Call

if TYPE_CHECKING:
    from megacontext.storage.audit import Chain


def audit(
    call: Call,
    verify: Annotated[bool, typer.Option("--verify", help="Only say whether the log is whole.")] = False,
) -> int:
    """Show the audit log: everything that erased, pruned, restored, repacked, collected or protected something.

    Each line has the hash of the one before it, so that none can be changed or taken out unnoticed; keep the last hash to
    notice lines cut off the end, too. Names of what was erased stand there as keyed hashes only. Exit code 1 if the
    log is not whole.
    """
    from megacontext.storage.audit import read

    chain = read(place.find_memory(call.directory))
    value = {
        "whole": not chain.wrong,
        "wrong": chain.wrong,
        "head": chain.head,
        "count": len(chain.entries),
        **({} if verify else {"entries": [entry.to_json() for entry in chain.entries]}),
    }
    call.show(value, lambda: _print(chain, verify))
    return failures.FOUND if chain.wrong else 0


def _print(chain: Chain, verify: bool) -> None:
    for entry in () if verify else chain.entries:
        plain = (f"{name} {value}" for name, value in entry.details.items() if isinstance(value, str | int | float))
        by = f" by {entry.author}" if entry.author else ""
        output.line(f"{entry.number}  {local_time(entry.time)}  {entry.act}{by}: {', '.join(plain)}")
    if chain.torn:
        output.line(f"note: {chain.torn} bytes of a line that was never finished")
    output.line(f"damaged: {chain.wrong}" if chain.wrong else f"whole: {len(chain.entries):,} lines, the last is {chain.head}")
