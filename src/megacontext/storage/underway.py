"""What is being written to a branch and not to be seen yet: how far a long document is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megacontext.storage import files
from megacontext.storage.segment import UNKNOWN
from megacontext.storage.state import BranchState


@dataclass(frozen=True, kw_only=True)
class UnderWay:
    """An unfinished document: `blocks` of it are acknowledged, which hold the first `chars_done` (about; -1: not known) of
    `chars` characters (0: not known). `writing`: somebody has the branch, and will probably finish it; else the same `add` goes
    on with it, and any other drops it."""

    source: str
    version: int
    blocks: int
    chars_done: int
    chars: int
    writing: bool


def under_way(state: BranchState, lock: Path) -> UnderWay | None:
    """The unfinished document of a branch that looks so and has this lock; an open conversation is none."""
    active = state.active
    if active is None or active.begun.open:
        return None
    last = int(state.tail.chars.view()[-1]) if active.blocks else 0
    begun = active.begun
    return UnderWay(
        source=begun.source,
        version=begun.version,
        blocks=active.blocks,
        chars_done=-1 if last == UNKNOWN else last,
        chars=begun.chars,
        writing=lock.exists() and files.FileLock(lock).taken(),
    )
