"""Which memory is meant: as with git, the one named, or the one around the current folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from megacontext.errors import InvalidInput, MemoryNotFound

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
