"""What the machine can do: copying, reading and multiplying as fast as torch does it; and how much memory a process holds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MEGABYTES = 128
SIDE = 1024
TIMES = 5


def copied_per_second() -> float:
    """Bytes read and written by a copy far larger than any cache; the best of several."""
    source, target = (torch.ones(MEGABYTES << 18) for _ in range(2))
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source))


def read_per_second() -> float:
    """Bytes that a matrix times a vector reads: what decoding does all the time; the best of several."""
    rows = torch.ones((MEGABYTES << 18) // SIDE, SIDE)
    vector = torch.ones(SIDE)
    return rows.nbytes / _fastest(lambda: torch.mv(rows, vector))


def operations_per_second() -> float:
    """Multiplications and additions of a square matrix product, two for each pair of numbers; the best of several."""
    left, right = (torch.ones(SIDE, SIDE) for _ in range(2))
    return float(2 * SIDE**3 / _fastest(lambda: left @ right))


def anonymous_bytes() -> int | None:
    """Memory of this process that no file stands behind; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), None)


def load() -> float | None:
    """How many processes want to run, over the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def median_ms(seconds: list[float]) -> float:
    """The median, in milliseconds."""
    return round(1e3 * float(np.median(seconds)), 4)


def _fastest(work: Callable[[], Tensor]) -> float:
    taken = []
    for _ in range(TIMES):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)
