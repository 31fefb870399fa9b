"""What a focus policy says: a signed score per entry, and blocks worth reading raw.

Direction: positive opens, negative closes. The unit is the policy's: [-1, 1], or nats gained over
the next interval when calibrated. A raw block cannot open; its score says how much it is worth
keeping.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megacontext.core.node import FloatArray, IntArray
from megacontext.core.working_context import WorkingContext
from megacontext.errors import InvalidInput


@dataclass(frozen=True, eq=False)
class Targets:
    """Blocks that are worth opening down to raw tokens, at whatever depth they lie now.

    Args:
        block: int64[k]; a block that is named twice counts with its larger gain.
        gain: float32[k], the gain of having the block raw, in the unit of the scores.

    Raises:
        InvalidInput: for other shapes, negative blocks or gains that are not finite.
    """

    block: IntArray
    gain: NDArray[np.float32]

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", _vector(self.block, np.int64, "target blocks"))
        object.__setattr__(self, "gain", _vector(self.gain, np.float32, "target gains"))
        if self.block.shape != self.gain.shape:
            raise InvalidInput(f"{self.block.size} target blocks came with {self.gain.size} gains")
        if np.any(self.block < 0):
            raise InvalidInput(f"target block {int(self.block.min())} is negative")


@dataclass(frozen=True, eq=False)
class FocusScores:
    """A policy's opinion on one window.

    Args:
        entries: float32[n], one score for each entry of the window.
        targets: blocks worth opening that may lie below high-level gists, or None.

    Raises:
        InvalidInput: for scores that are not a vector of finite numbers.
    """

    entries: NDArray[np.float32]
    targets: Targets | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", _vector(self.entries, np.float32, "scores"))

    @classmethod
    def zeros(cls, window: WorkingContext, targets: Targets | None = None) -> FocusScores:
        """No opinion on any entry: a policy that only knows targets (retrieval) starts here."""
        return cls(np.zeros(len(window), np.float32), targets)

    def check(self, window: WorkingContext) -> None:
        """Raise InvalidInput unless the scores belong to a window of this size and extent."""
        if self.entries.size != len(window):
            raise InvalidInput(
                f"{self.entries.size} scores for a window of {len(window)} entries: scores belong"
                " to one window and have to be made anew after an edit"
            )
        if self.targets is not None and np.any(self.targets.block >= window.timeline.blocks):
            raise InvalidInput(
                f"target block {int(self.targets.block.max())} does not exist: the timeline has"
                f" {window.timeline.blocks} complete blocks"
            )


@dataclass(frozen=True, eq=False)
class Worth:
    """Scores and targets brought together on a window, sorted out by depth.

    entries float64[n]: the worth of opening (gist) or keeping (raw, or the detail below) each
    entry: its score, or the best gain of a target in its span if that is more. The rest are the
    targets below gists of lod >= 2, by block: block int64[k], gain float64[k], entry int64[k]
    (position). absent int64[j] are targets that are dead, denied or pruned.
    """

    entries: FloatArray
    block: IntArray
    gain: FloatArray
    entry: IntArray
    absent: IntArray


def worth(window: WorkingContext, scores: FocusScores) -> Worth:
    """Fold a policy's targets into its entry scores."""
    scores.check(window)
    entries = scores.entries.astype(np.float64)
    none = np.empty(0, np.int64)
    if scores.targets is None or not scores.targets.block.size:
        return Worth(entries, none, np.empty(0), none, none)
    order = np.lexsort((-scores.targets.gain, scores.targets.block))
    block, keep = np.unique(scores.targets.block[order], return_index=True)
    gain = scores.targets.gain[order][keep].astype(np.float64)
    raw = np.zeros(block.size, np.int8)
    there = ~(window.timeline.absent_mask(raw, block) | window.timeline.pruned_mask(raw, block))
    absent, block, gain = block[~there], block[there], gain[there]
    entry = window.covering(block)
    np.maximum.at(entries, entry, gain)
    deep = window.lod[entry] > 1
    return Worth(entries, block[deep], gain[deep], entry[deep], absent)


def _vector(values: ArrayLike, dtype: type[np.generic], what: str) -> NDArray[np.generic]:
    array = np.array(values, dtype=dtype)
    if array.ndim != 1:
        raise InvalidInput(f"{what} must be one vector, not an array of shape {array.shape}")
    if not np.all(np.isfinite(array)):
        raise InvalidInput(f"{what} must be finite; number {int(np.argmin(np.isfinite(array)))} is not")
    array.setflags(write=False)
    return array
