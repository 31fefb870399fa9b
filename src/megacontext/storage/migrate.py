"""From earlier formats to the present one, step by step. What a step changes is kept in `backup/` first.

A step never touches objects: they are named by their content, and every version reads what earlier ones wrote. It changes
the few small files around them, the number in megacontext.json last; so a crash leaves a memory of the old or of the new
format, and the step can be taken again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from megacontext.storage import files
from megacontext.storage.format import FORMAT
from megacontext.storage.garbage import nobody_writes
from megacontext.storage.info import read_info
from megacontext.storage.place import INFO

BACKUP = "backup"


@dataclass(frozen=True, kw_only=True)
class Step:
    """From one format to the next: what it `means`, and what it does to the memory in a folder. `changes` names the files
    that it changes, beside megacontext.json."""

    means: str
    changes: tuple[str, ...] = ()
    apply: Callable[[Path], None] = lambda root: None


# By the format that a step starts from.
STEPS = {
    1: Step(
        means="documents can be superseded, removed and labelled: commits name dead blocks and labels, which a version that "
        "knows format 1 only would show as if they were still there"
    )
}


@dataclass(frozen=True, kw_only=True)
class Migrated:
    """From which format to which; what each step `means`; `changed` files, which are kept in the folder `backup` ('' if
    nothing was to be done)."""

    before: int
    after: int
    means: tuple[str, ...]
    changed: tuple[str, ...]
    backup: str


def migrate(root: Path, *, dry_run: bool = False) -> Migrated:
    """Brings the memory at `root` to the present format; a dry run only tells how. Nobody may write meanwhile.

    Raises MemoryNotFound, CorruptObject, FormatVersionError for a newer format, BranchLocked, StorageFull.
    """
    before = read_info(root).format
    steps = [STEPS[number] for number in range(before, FORMAT)]
    changed = tuple(dict.fromkeys((*(name for step in steps for name in step.changes), *((INFO,) if steps else ()))))
    folder = root / BACKUP / f"format-{before}"
    if steps and not dry_run:
        with nobody_writes(root):
            for number in range(before, FORMAT):
                _take(root, number)
    return Migrated(
        before=before,
        after=FORMAT,
        means=tuple(step.means for step in steps),
        changed=changed,
        backup=str(folder.relative_to(root)) if steps else "",
    )


def _take(root: Path, number: int) -> None:
    step = STEPS[number]
    folder = root / BACKUP / f"format-{number}"
    files.make_folder(folder)
    for name in (*step.changes, INFO):
        if not (folder / name).exists():  # or an interrupted step has begun to change it
            files.make_folder((folder / name).parent)
            files.replace_file(folder / name, (root / name).read_bytes())
    files.sync_all([folder.parent, root], files.sync_folder)
    step.apply(root)
    files.replace_file(root / INFO, replace(read_info(root), format=number + 1).to_bytes())
