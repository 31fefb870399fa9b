"""megacontext gc: give back the room of what nothing needs any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from megacontext.cli import output, place
from megacontext.cli.verb import Call

if TYPE_CHECKING:
    from megacontext.storage.garbage import Garbage

_HOUR = 3600.0


def gc(
    call: Call,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    grace: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="Leave what is younger than this: a writer that is at work may be about to name it. With 0 no branch may "
            "be written meanwhile.",
        ),
    ] = _HOUR,
) -> None:
    """Remove the objects that no branch, tag or journal leads to, such as those of deleted branches.

    Nothing that can be read is touched. A memory that is damaged is left as it is; see `megacontext fsck`.
    """
    from megacontext.storage import audit
    from megacontext.storage.garbage import collect

    root = place.find_memory(call.directory)
    found = collect(root, grace=grace, dry_run=dry_run)
    if found.removed and (found.objects or found.pruned):
        details = {"objects": found.objects, "bytes": found.bytes, "pruned": found.pruned}
        audit.append(root, "gc", details)
    value = {
        "path": str(root),
        "removed": found.removed,
        "objects": found.objects,
        "bytes": found.bytes,
        "kinds": {kind: {"objects": count, "bytes": size} for kind, (count, size) in found.kinds.items()},
        "leftovers": found.leftovers,
        "pruned": {"files": found.pruned, "bytes": found.pruned_bytes, "outside": list(found.outside)},
        "young": found.young,
        "kept": {"objects": found.kept, "bytes": found.kept_bytes},
    }
    call.show(value, lambda: _print(found))


def _print(found: Garbage) -> None:
    if found.kinds:
        rows = [(kind, f"{count:,}", f"{size:,}") for kind, (count, size) in found.kinds.items()]
        output.table(("what it held", "objects", "bytes"), rows, right=("objects", "bytes"))
    if found.leftovers:
        output.line(f"{found.leftovers:,} files of interrupted writers in staging/")
    verb = "removed" if found.removed else "would remove"
    output.line(f"{verb} {output.many(found.objects, 'object')}, {found.bytes:,} bytes")
    if found.pruned:
        output.line(f"{verb} {found.pruned:,} files of pruned objects in archive/ and pruned/, {found.pruned_bytes:,} bytes")
    for path in found.outside:
        output.line(f"left {path}: this memory does not need it any more, another one may")
    young = f"; {found.young:,} more that nothing needs are younger than the grace period" if found.young else ""
    output.line(f"kept {output.many(found.kept, 'object')}, {found.kept_bytes:,} bytes{young}")
