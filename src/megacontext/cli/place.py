"""Which memory is meant: as with git, the one named, or the one around the current folder."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megacontext.cli import output
from megacontext.errors import InvalidInput, MemoryNotFound

if TYPE_CHECKING:
    from megacontext.storage import Repository

VARIABLE = "MEGACONTEXT_DIR"
DENY = "MEGACONTEXT_DENY"
DEFAULT = "memory.mc"

RULE = (
    f"The memory's folder. Without it: ${VARIABLE}; else, as with git, the closest folder from the current one upwards "
    f"that is a memory or holds one named {DEFAULT}."
)


def named(given: Path | None) -> Path | None:
    """The memory that -C or the environment names, if they name one."""
    if given is not None:
        return given
    value = os.environ.get(VARIABLE)
    return Path(value) if value else None


def find_memory(given: Path | None) -> Path:
    """The folder of the memory that a command is about; raises MemoryNotFound where there is none."""
    if (path := named(given)) is not None:
        return path
    from megacontext.storage.place import INFO

    here = _here()
    for folder in (here, *here.parents):
        for candidate in (folder, folder / DEFAULT):
            if (candidate / INFO).is_file():
                return candidate
    raise MemoryNotFound(
        f"no memory here: neither {here} nor a folder above it is one or holds {DEFAULT}; create one with "
        "`megacontext init`, or name one with -C DIR"
    )


def denied(given: Sequence[str]) -> tuple[str, ...]:
    """The labels that a command may not see: those of --deny, and those of the environment, divided by commas."""
    return (*given, *(name for name in map(str.strip, os.environ.get(DENY, "").split(",")) if name))


def check_labels(repository: Repository, given: Sequence[str]) -> None:
    """Raises InvalidInput where a label in --deny is one that nothing carries, and warns of one in the environment that is
    nearly one that something does."""
    standing = [name for name in denied(()) if name not in given]
    if not given and not standing:
        return
    known = sorted(repository.all_labels())
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            raise InvalidInput(
                f"no branch or tag has anything labelled {name!r}, so --deny {name} would deny nothing; {meant}There are "
                f"{', '.join(known) or 'no labels yet'}. ${DENY} also takes labels that nothing carries yet"
            )
    for name in standing:
        if name not in known and (close := difflib.get_close_matches(name, known, n=1)):
            output.warning(f"note: nothing carries the label {name!r} of ${DENY} yet; there is {close[0]}")


SOURCE = "A source, a path or the end of one (whole names), a folder for all that is below it, or a pattern with * and ?."


def source_pattern(root: Path, given: str) -> str:
    """What names documents of the memory at `root`, where a path that starts with ., / or ~ is one on disk."""
    if not given.startswith(("./", "../", "/", "~")) and given not in (".", ".."):
        return given
    from megacontext.engine.source_names import name_of

    path = Path(given).expanduser()
    place = path.parent.resolve() / path.name if path.is_symlink() and not path.is_dir() else path.resolve()
    return name_of(place, root.resolve().parent) + "/" * given.endswith("/")


def source_patterns(root: Path, given: Sequence[str] | None) -> list[str]:
    """The same for each of some."""
    return [source_pattern(root, each) for each in given or ()]


def new_memory(argument: Path | None, given: Path | None) -> Path:
    """Where `init` puts a memory: its argument, what -C or the environment names, else ./memory.mc."""
    if argument is not None and given is not None and argument != given:
        raise InvalidInput(f"two folders are named, {argument} and -C {given}: give one")
    return argument or named(given) or Path(DEFAULT)


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise MemoryNotFound("the current folder does not exist any more; change to another one") from error
