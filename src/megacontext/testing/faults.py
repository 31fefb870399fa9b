"""Faults of the disk and deaths of the process, at any step that changes what is on the disk.

::

    with Faults(Fate.KILL, at=17).installed(): ...       the process is gone before the 17th step
    with Faults(Fate.ERROR, at=17).installed(): ...      the 17th step fails with an input/output error
    with Faults().installed() as steps: ...              nothing happens; steps.count tells how many there were

Everything that MegaContext writes goes through the few functions of `os` that stand here (SQLite's own files do not: indexes
are disposable). They are replaced for the whole process.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

STEPS = ("write", "pwrite", "replace", "rename", "link", "unlink", "rmdir", "mkdir", "ftruncate", "utime", "fsync", "fdatasync")
_FILLING = ("write", "pwrite", "mkdir")


class Fate(StrEnum):
    """What happens at the step."""

    NOTHING = "nothing"
    KILL = "kill"  # the process is killed before the step
    KILL_WITHIN = "kill within"  # the same, half way through a write
    ERROR = "error"  # the step fails once, with an input/output error
    FULL = "full"  # the disk is full from the step on, after half a write
    STOP = (
        "stop"  # nothing reaches the disk from the step on: `Stopped`, as if killed, but the process can look at what is left
    )


class Stopped(BaseException):
    """Stands for the end of the process: no handler of errors gets in its way."""


class Faults:
    """Counts steps, and at step ``at`` (from 1) lets ``fate`` happen. ``synced(inode, size)`` is told of every file whose
    content has become durable."""

    def __init__(self, fate: Fate = Fate.NOTHING, at: int = 0) -> None:
        self.fate = fate
        self.at = at
        self.count = 0
        self.happened = False
        self.synced: Callable[[int, int], object] = lambda inode, size: None
        self._paused = False

    @contextmanager
    def installed(self) -> Iterator[Faults]:
        """While this lasts, the functions of ``os`` are these."""
        real = {name: getattr(os, name) for name in STEPS}
        try:
            for name in STEPS:
                setattr(os, name, self._step(name, real[name]))
            yield self
        finally:
            for name in STEPS:
                setattr(os, name, real[name])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While this lasts, steps are not counted and nothing happens."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _step(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if self._paused:
                return real(*arguments, **options)
            self.count += 1
            if self.count >= self.at > 0 and self.fate is not Fate.NOTHING:
                self._happen(name, real, arguments)
            result = real(*arguments, **options)
            if name in ("fsync", "fdatasync"):
                found = os.fstat(arguments[0])
                self.synced(found.st_ino, found.st_size)
            return result

        return step

    def _happen(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        first, self.happened = not self.happened, True
        half = name == "write" and len(arguments[1]) > 1
        if self.fate in (Fate.KILL_WITHIN, Fate.FULL, Fate.STOP) and first and half:
            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if self.fate in (Fate.KILL, Fate.KILL_WITHIN):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fate is Fate.STOP:
            raise Stopped
        if self.fate is Fate.ERROR and first:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if self.fate is Fate.FULL and name in _FILLING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
