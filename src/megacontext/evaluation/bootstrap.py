"""Percentile bootstrap intervals, resampled by group (document or package), never by token.

Efron & Tibshirani 1993, "An Introduction to the Bootstrap", ch. 13. Paired: two arms are compared on the
same resampled groups.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
RESAMPLES = 2000


def group_weights(group: npt.NDArray[np.int64], seed: int, resamples: int = RESAMPLES) -> FloatArray:
    """How often each item counts in each resample: float64 [resamples, items]."""
    _, members = np.unique(group, return_inverse=True)
    groups = int(members.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return drawn[:, members].astype(np.float64)


def interval(values: FloatArray) -> tuple[float, float]:
    """The 95 % percentile interval of resampled figures, without those that are not finite."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    return float(low), float(high)


def weighted_mean(values: FloatArray, mask: npt.NDArray[np.bool_], weights: FloatArray) -> FloatArray:
    """Mean over masked tokens under each resample: values, mask [items, tokens], weights [r, items] → [r]."""
    total = weights @ np.where(mask, values, 0.0).sum(axis=1)
    count = weights @ mask.sum(axis=1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: FloatArray = total / count
    return result
