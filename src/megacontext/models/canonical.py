"""Batches of one shape: gists whose bits do not depend on how blocks are grouped and ordered.

Matrix results depend on a batch's shape in the last bit, so gists that are stored are always those of batches of ``ROWS``
blocks, padded. Batches of ``WIDE`` blocks are about twice as fast and mostly give the very same bits; whether they do on this
machine is tried out and never assumed: order of summation depends on shapes, not on numbers, so random numbers tell.

Shapes: N rows in all, R rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# A single block, as decoding appends it, costs a third of a batch of 16.
ROWS = 4
WIDE = 32
# From so many rows on, trying costs less than it can bring.
WORTH_TRYING = 8 * WIDE

Compute = Callable[[Tensor, Tensor], Tensor]
"""``(input [R, …], mask bool [R, …]) → float [R, …]``; rows have no influence on each other but in their last bits."""
Sample = Callable[[torch.Generator], tuple[Tensor, Tensor]]
"""Random inputs and masks of ``WIDE`` rows, on the CPU, unlike each other."""


class CanonicalBatches:
    """Cuts rows into batches for one network, and remembers for which shapes wide ones are as good as canonical ones."""

    def __init__(self) -> None:
        self._same: dict[tuple[object, ...], bool] = {}

    def slices(self, count: int, compute: Compute, sample: Sample, *shape: object) -> Iterator[tuple[slice, int]]:
        """Rows of ``count`` that go together, and how many rows their batch has to be padded to.

        ``compute`` gives all numbers that the last bits could differ in; ``shape``: whatever else tells two shapes apart.
        """
        wide = count // WIDE * WIDE if count >= WORTH_TRYING and self._as_good(compute, sample, shape) else 0
        for start in range(0, wide, WIDE):
            yield slice(start, start + WIDE), WIDE
        for start in range(wide, count, ROWS):
            yield slice(start, min(start + ROWS, count)), ROWS

    def _as_good(self, compute: Compute, sample: Sample, shape: tuple[object, ...]) -> bool:
        key = (torch.get_num_threads(), *shape)
        if key not in self._same:
            inputs, mask = sample(torch.Generator().manual_seed(0))
            together = compute(inputs, mask)
            apart = [compute(inputs[at : at + ROWS], mask[at : at + ROWS]) for at in range(0, WIDE, ROWS)]
            self._same[key] = torch.equal(together, torch.cat(apart))
        return self._same[key]


def padded(rows: Tensor, size: int, like: Tensor) -> Tensor:
    """Rows [k, …] behind each other in [size, …] with the dtype and device of ``like``; what is missing is zero."""
    batch = torch.zeros(size, *rows.shape[1:], dtype=like.dtype, device=like.device)
    batch[: len(rows)] = rows.to(batch)
    return batch


def random_mask(rows: int, slots: int, generator: torch.Generator) -> Tensor:
    """Rows of which a random number of leading slots are there, bool [rows, slots]; mostly all."""
    there = torch.randint(1, slots + 1, (rows, 1), generator=generator)
    whole = torch.rand(rows, 1, generator=generator) < 0.7
    return (torch.arange(slots) < there) | whole
