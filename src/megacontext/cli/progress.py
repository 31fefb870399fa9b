"""Progress bars on stderr: listeners to what the engine tells. Nothing is shown where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from megacontext.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress

    from megacontext.engine.events import Event, Listener


@contextmanager
def ingest_progress(verb: str = "adding") -> Iterator[Listener]:
    """A listener that draws how many bytes are read and how many tokens they gave."""
    from megacontext.engine.events import nobody

    if not sys.stderr.isatty():
        yield nobody
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[tokens]:,} tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=output.stderr(), transient=True) as progress:
        yield _IngestBar(progress, verb)


@contextmanager
def byte_progress(verb: str) -> Iterator[Callable[[int, int], None]]:
    """What draws bytes done of bytes to do."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=output.stderr(), transient=True) as progress:
        task = progress.add_task(verb, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def count_progress(verb: str, things: str) -> Iterator[Callable[[int, int], None]]:
    """What draws how many things of how many are done, once there is one to do."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(things), TimeRemainingColumn())
    with Progress(*columns, console=output.stderr(), transient=True) as progress:
        task = progress.add_task(verb, total=None, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)


class _IngestBar:
    def __init__(self, progress: Progress, verb: str) -> None:
        self._progress = progress
        self._task = progress.add_task(verb, total=None, tokens=0)
        self._tokens = 0
        self._size = 0
        self._done = 0

    def __call__(self, event: Event) -> None:
        from megacontext.engine.events import BlocksIngested, ConvertStarted, DocumentFinished, DocumentUnchanged, IngestStarted

        part = 0.0
        if isinstance(event, IngestStarted):
            self._size = event.size
        elif isinstance(event, ConvertStarted):
            self._size += event.chars
        elif isinstance(event, BlocksIngested):
            self._tokens += event.tokens
            part = float(event.chars_done)
        elif isinstance(event, DocumentFinished | DocumentUnchanged):
            self._done += event.size
        # Standard input has a size only once it has been read.
        total = max(self._size, self._done) or None
        self._progress.update(self._task, total=total, completed=self._done + part, tokens=self._tokens)


@contextmanager
def regist_progress() -> Iterator[Listener]:
    """A listener that draws how many blocks have gists, how fast that goes and how long it will take."""
    from megacontext.engine.events import nobody

    if not sys.stderr.isatty():
        yield nobody
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("blocks, {task.fields[settled]:,} settled"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=output.stderr(), transient=True) as progress:
        yield _RegistBar(progress)


class _RegistBar:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("gists", total=None, settled=0)

    def __call__(self, event: Event) -> None:
        from megacontext.engine.events import BlocksRegisted, Committed, RegistStarted

        if isinstance(event, RegistStarted):
            self._progress.update(self._task, total=event.blocks, completed=event.covered, settled=event.covered)
        elif isinstance(event, BlocksRegisted):
            self._progress.update(self._task, completed=event.covered)
        elif isinstance(event, Committed):
            self._progress.update(self._task, settled=event.blocks)
