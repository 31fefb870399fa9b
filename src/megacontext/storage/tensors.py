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
from typing import Any

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
    try:
        length = int.from_bytes(view[:8], "little")
        if len(view) < 8 or length > len(view) - 8:
            raise ValueError("the header is longer than the object")
        body = view[8 + length :]
        header = json.loads(bytes(view[8 : 8 + length]), object_pairs_hook=_distinct)
        metadata = header.pop("__metadata__")
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is no text")
        end, arrays = 0, {}
        # Empty arrays share their place with the next one.
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            arrays[name], end = _array(body, entry, end)
        if end != len(body):
            raise ValueError("bytes that belong to no array")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a safetensors object: {error}") from error
    return arrays, metadata


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is given twice")
    return value


def _array(body: memoryview, entry: dict[str, Any], start: int) -> tuple[Array, int]:
    """The array that lies at `start`, and where it ends."""
    begin, end = entry["data_offsets"]
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    # `type`, since True is an int too.
    if any(type(number) is not int or number < 0 for number in (begin, end, *shape)):
        raise ValueError("a shape or an offset is no natural number")
    if begin != start or end - begin != math.prod(shape) * dtype.itemsize or end > len(body):
        raise ValueError("an array is not where, or not as large as, its header says")
    array: Array = np.frombuffer(body[begin:end], dtype).reshape(shape)
    array.setflags(write=False)
    return array, end
