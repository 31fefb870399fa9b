"""Rows of many arrays gathered in one go, by the addresses at which they lie in this process's memory.

A memory's rows lie in thousands of mapped files. Taking 256 scattered ones file by file costs 256 calls; numpy has no
gather over several arrays, but it has one over a strided array. So each row size has one read-only array that lies over
the whole address space, its rows overlapping, one at every item: indexing it with addresses copies exactly the rows
that lie there. Measured over a million blocks: 0.6 ms before, 0.08 ms so, 0.07 ms for one flat file.

A wrong address would read whatever lies there, or end the process. So addresses are made here only, of where an array begins
and of a row that is checked against its length, whatever led to it. What is left to whoever gathers: arrays begin where they
are said to and have these rows, and they are kept alive meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from megacontext.storage.tensors import I64, Array

# Up to here numpy can count the bytes of the largest rows; where a system puts arrays behind it (`reachable`), rows have to be
# taken one by one. It wants a first address that is not null.
_END, _FIRST = 1 << 47, 1 << 12
# An overlapping array of larger rows would have more bytes than numpy can count.
LARGEST_ROW = 1 << 15


def position(array: Array) -> int:
    """Where an array's first row lies, counted in items of its dtype. Its rows must lie one behind the other; raises
    ValueError if they do not."""
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError("only rows without gaps can be gathered")
    return (int(array.__array_interface__["data"][0]) - _FIRST) // array.itemsize


def reachable(array: Array) -> bool:
    """Whether the rows of an array lie where `gather` can take them."""
    address = int(array.__array_interface__["data"][0])
    return address >= _FIRST and address + array.nbytes <= _END


def row_bytes(like: Array) -> int:
    """Bytes of one row of an array."""
    return like.itemsize * math.prod(like.shape[1:])


def gather(first: I64, row: I64, count: I64, like: Array) -> Array | None:
    """Copies of rows of many arrays: [k, *like.shape[1:]] of the dtype of `like`; a row may have up to `LARGEST_ROW` bytes.

    int64 [k] `first` are the positions of the first rows of each one's array, which has int64 [k] `count` rows, of which int64
    [k] `row` is wanted. None where an array does not have the row: nothing is read then.
    """
    # Seen without a sign, a negative row is larger than any other.
    if not np.less(row.view(np.uint64), count.view(np.uint64)).all():
        return None
    positions = first + row * math.prod(like.shape[1:])
    rows = _address_space(row_bytes(like), like.itemsize)[positions]
    gathered: Array = rows.view(like.dtype).reshape(len(positions), *like.shape[1:])
    return gathered


class _AddressSpace:
    """What numpy asks an object for that is to become an array."""

    def __init__(self, row: int, item: int) -> None:
        self.__array_interface__: Mapping[str, Any] = {
            "data": (_FIRST, True),
            "shape": ((_END - _FIRST) // item,),
            "strides": (item,),
            "typestr": f"|V{row}",
            "version": 3,
        }


@cache
def _address_space(row: int, item: int) -> Array:
    return np.asarray(_AddressSpace(row, item))
