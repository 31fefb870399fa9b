"""Progress bars for countable work, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def bar(*, quiet: bool = False) -> Progress:
    """A progress display with count, elapsed and remaining time; ``quiet`` shows nothing."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
        # Steps take seconds and evaluations a minute: a short memory would show no estimate, or a jumping one.
        speed_estimate_period=600,
    )


@contextmanager
def counted(description: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[], None]]:
    """A bar over ``total`` pieces of work; gives the function that counts one."""
    with bar(quiet=quiet) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)
