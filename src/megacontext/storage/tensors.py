"""A canonical safetensors codec: named arrays to bytes and back, without a copy on the way back.

Any tool that reads safetensors opens these bytes. The library itself is not used for writing, because
objects are named by their content and the names must not change with a library's choice of header.
Arrays are laid out by falling item size, then by name; the header is padded to 8 bytes, so every array
is aligned when the file is mapped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]
F16 = NDArray[np.float16]
I64 = NDArray[np.int64]

_DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("<u1"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def encode(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """The bytes of `arrays` (uint8, uint32, int64 or float16, any shape) and string `metadata`."""
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in order:
        array = arrays[name]
        end = offset + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    parts = [np.ascontiguousarray(arrays[name]).data.cast("B") for name in order if arrays[name].size]
    return b"".join((len(text).to_bytes(8, "little"), text, *parts))


def decode(data: bytes | memoryview) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays (read-only views into `data`) and metadata; raises ValueError if `data` is not of this form.

    The bytes may come from anybody: what the header says is believed only where it describes exactly the bytes that
    are there, each of them once. So nothing is allocated for what a header claims.
    """
    view = memoryview(data)
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or length > len(view) - 8:
        raise ValueError("not a safetensors object: the header is longer than the object")
    header, body = bytes(view[8 : 8 + length]), view[8 + length :]
    layout = _remembered(header) if length <= _REMEMBERED_BYTES else _layout(header)
    if layout.end != len(body):
        raise ValueError("not a safetensors object: bytes that belong to no array, or an array that is not all there")
    try:
        arrays = {
            name: np.frombuffer(body[begin:end], dtype).reshape(shape) for name, dtype, shape, begin, end in layout.arrays
        }
    except (ValueError, OverflowError) as error:  # more sides than numpy can count
        raise ValueError(f"not a safetensors object: {error}") from error
    for array in arrays.values():
        array.setflags(write=False)
    return arrays, dict(layout.metadata)


class _Layout(NamedTuple):
    """What a header says: name, dtype, shape, begin and end of each array, the metadata, and where the last one ends."""

    arrays: list[tuple[str, np.dtype[Any], tuple[int, ...], int, int]]
    metadata: dict[str, str]
    end: int


def _layout(text: bytes) -> _Layout:
    try:
        header = json.loads(text, object_pairs_hook=_distinct)
        metadata = header.pop("__metadata__")
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is no text")
        end, arrays = 0, []
        # Empty arrays share their place with the next one.
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape, begin = _DTYPES[entry["dtype"]], tuple(entry["shape"]), end
            end = _end(entry, dtype, shape, begin)
            arrays.append((name, dtype, shape, begin, end))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a safetensors object: {error}") from error
    return _Layout(arrays, metadata, end)


# Pages of one size have one header, and a memory is opened by reading up to a hundred of them.
_REMEMBERED_BYTES = 2048
_remembered = lru_cache(1024)(_layout)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is given twice")
    return value


def _end(entry: dict[str, Any], dtype: np.dtype[Any], shape: tuple[int, ...], start: int) -> int:
    """Where an array that lies at `start` ends."""
    begin, end = entry["data_offsets"]
    # `type`, since True is an int too.
    if any(type(number) is not int or number < 0 for number in (begin, end, *shape)):
        raise ValueError("a shape or an offset is no natural number")
    if begin != start or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array is not where, or not as large as, its header says")
    return int(end)
