"""megacontext fsck: is everything there, and whole?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megacontext.cli import failures, output, place
from megacontext.cli.verb import Call

if TYPE_CHECKING:
    from megacontext.storage import Report


def fsck(call: Call) -> int:
    """Check the memory: recompute every hash and checksum, and see that everything fits together.

    Changes nothing. Names each damaged object, with what is lost by it. Exit code 1 if anything is damaged.
    """
    # Not through Memory.open: that the memory cannot be opened is one of the damages to report.
    from megacontext.storage.fsck import check

    root = place.find_memory(call.directory)
    report = check(root)
    value = {
        "path": str(root),
        "clean": report.clean,
        "objects": report.objects,
        "bytes": report.bytes,
        "unreachable": report.unreachable,
        "damaged": [{"name": each.name, "kind": each.kind, "meaning": each.meaning} for each in report.findings],
        "notes": list(report.notes),
    }
    call.show(value, lambda: _print(report))
    return 0 if report.clean else failures.FOUND


def _print(report: Report) -> None:
    for note in report.notes:
        output.line(f"note: {note}")
    for finding in report.findings:
        output.line(f"damaged: {finding}")
    spare = f", {report.unreachable:,} of them not used by any branch" if report.unreachable else ""
    output.line(f"checked {output.many(report.objects, 'object')}, {report.bytes:,} bytes{spare}")
    count = len(report.findings)
    output.line("clean" if not count else f"{count} {'damage' if count == 1 else 'damages'} found")
