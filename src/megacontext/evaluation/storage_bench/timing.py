"""Timing two ways of one thing in turns, so that a machine that slows down slows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Thunk = Callable[[], object]
Prepare = Callable[[], Thunk]
"""Makes ready, untimed, and gives what is to be timed."""


class Stopwatch:
    """Adds up, as a context manager, what is spent inside of it: ``seconds``, and those in which this process was computing."""

    def __init__(self) -> None:
        self.seconds = self.computing = 0.0
        self._started = 0.0, 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started[0]
        self.computing += time.process_time() - self._started[1]


def in_turns(prepared: Sequence[Prepare], repeats: int, progress: Callable[[], None]) -> list[list[Stopwatch]]:
    """What each of the ways takes, ``repeats`` times; who goes first changes every time."""
    taken: list[list[Stopwatch]] = [[] for _ in prepared]
    for repeat in range(repeats):
        order = range(len(prepared)) if repeat % 2 == 0 else reversed(range(len(prepared)))
        for each in order:
            thunk, watch = prepared[each](), Stopwatch()
            with watch:
                thunk()
            taken[each].append(watch)
        progress()
    return taken


def figures(taken: Sequence[Stopwatch]) -> dict[str, Any]:
    """Median, 99th percentile and fastest, in milliseconds; and the median of what was computing, not waiting for the disk
    or for other processes."""
    ms = np.array([watch.seconds for watch in taken]) * 1e3
    return {
        "p50_ms": round(float(np.median(ms)), 4),
        "p99_ms": round(float(np.percentile(ms, 99)), 4),
        "min_ms": round(float(ms.min()), 4),
        "computing_p50_ms": round(float(np.median([watch.computing for watch in taken])) * 1e3, 4),
    }


def compared(what: str, ours: Sequence[Stopwatch], plain: Sequence[Stopwatch], **about: Any) -> dict[str, Any]:
    """One record: both ways and the ratio of their medians."""
    memory, flat = figures(ours), figures(plain)
    return {
        "what": what,
        **about,
        "repeats": len(ours),
        "memory": memory,
        "plain": flat,
        "ratio": round(memory["p50_ms"] / flat["p50_ms"], 3),
    }


def alone(what: str, ours: Sequence[Stopwatch], **about: Any) -> dict[str, Any]:
    """One record of something that a plain file cannot do."""
    return {"what": what, **about, "repeats": len(ours), "memory": figures(ours)}
