"""The number of the format on disk, and what may be done with a memory of an earlier one."""

from __future__ import annotations

from pathlib import Path

from megacontext.errors import FormatVersionError

# What this version writes; docs/format.md tells what each number means. It reads every earlier one, and writes to one
# after `megacontext migrate`, so that an older version never meets what it would misread.
FORMAT = 2
OLDEST = 1


def check_writable(root: Path, number: int) -> None:
    """Raises FormatVersionError for a memory of an earlier format, which is only read."""
    if number < FORMAT:
        raise FormatVersionError(
            f"{root} has format {number}, which this version reads but does not write: run `megacontext migrate` "
            f"(with --dry-run to see what it would do) to bring it to format {FORMAT}"
        )
