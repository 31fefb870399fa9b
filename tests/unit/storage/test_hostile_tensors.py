"""Tensor objects that somebody made up to do harm: a ValueError, and nothing is allocated or read outside."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.storage.tensors import decode, encode

GOOD = encode({"ids": np.arange(64, dtype=np.uint32), "fill": np.ones(2, np.uint8)}, {"kind": "tokens"})
BODY = 258  # bytes of the arrays in GOOD


def made(header: Any, body: bytes = bytes(BODY), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def one(**changes: Any) -> bytes:
    """An object of one array of 258 bytes, with other claims about it."""
    return made({"__metadata__": {}, "x": {"dtype": "U8", "shape": [BODY], "data_offsets": [0, BODY], **changes}})


def two(first: list[int], second: list[int]) -> bytes:
    entries = {
        name: {"dtype": "U8", "shape": [max(stop - start, 0)], "data_offsets": [start, stop]}
        for name, (start, stop) in (("a", first), ("b", second))
    }
    return made({"__metadata__": {}, **entries})


HOSTILE = {
    "a header longer than the file": made({"__metadata__": {}}, length=2**40),
    "a header longer than any file": made({"__metadata__": {}}, length=2**64 - 1),
    "no header": b"\0" * 8,
    "half a length": b"\1\0",
    "a shape of another size": one(shape=[BODY + 1]),
    "a shape that overflows": one(shape=[2**63, 2**63]),
    "a shape of nothing and too much": one(shape=[0, 2**70], data_offsets=[0, 0]),
    "negative sides": one(shape=[-2, -129]),
    "a side to be guessed": one(shape=[-1], data_offsets=[BODY, 0]),
    "a side that is a fraction": one(shape=[258.0]),
    "a side that is a truth": one(shape=[258, True]),
    "a side that is text": one(shape="258"),
    "very many sides": one(shape=[1] * 100 + [BODY]),
    "offsets from the end": one(data_offsets=[-BODY, 0]),
    "offsets behind the end": one(shape=[BODY], data_offsets=[8, BODY + 8]),
    "offsets that are text": one(data_offsets="ab"),
    "three offsets": one(data_offsets=[0, 1, 2]),
    "a type that runs code": one(dtype="O"),
    "a type of absurd width": one(dtype="V99999999999"),
    "a type that is a list": one(dtype=["U8"]),
    "arrays that overlap": two([0, 200], [100, 258]),
    "arrays that are the same": two([0, 258], [0, 258]),
    "a gap between arrays": two([0, 100], [101, 258]),
    "bytes behind the arrays": two([0, 100], [100, 200]),
    "metadata that is no text": made({"__metadata__": {"kind": 1}}, b""),
    "metadata that is a list": made({"__metadata__": ["kind"]}, b""),
    "no metadata": made({}, b""),
    "a list": made([1], b""),
    "an array that is a number": made({"__metadata__": {}, "x": 1}, b""),
    "a name twice": made(b'{"__metadata__":{"kind":"tokens"},"__metadata__":{"kind":"gists"}}', b""),
    "a header without a bottom": made(b'{"a":' * 100_000, b""),
    "not UTF-8": made(b'{"__metadata__":{"\xff":""}}', b""),
    "a number of a million digits": made(b'{"__metadata__":{},"x":' + b"9" * 1_000_000 + b"}", b""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_without_allocating_what_it_claims(name: str) -> None:
    data = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="not a safetensors object"):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(data) + 2**20
    finally:
        tracemalloc.stop()


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_change_of_the_bytes_is_refused_or_gives_arrays_within_them(data: st.DataObject) -> None:
    changed = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(GOOD) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(changed[: data.draw(st.integers(0, len(GOOD)))]) if data.draw(st.booleans()) else bytes(changed))


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
numbers = st.integers(-3, 300) | st.integers()
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "U32", "I64", "F16", "F64", "BOOL", ""]) | values,
        "shape": st.lists(numbers | values, max_size=4) | values,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2) | values,
    }
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.text(max_size=3), entries | values, max_size=3), values | st.just({}), st.integers(0, 40))
def test_any_header_is_refused_or_gives_arrays_within_the_bytes(header: dict[str, Any], metadata: Any, size: int) -> None:
    check(made({**header, "__metadata__": metadata}, bytes(size)))


def check(data: bytes) -> None:
    try:
        arrays, metadata = decode(data)
    except ValueError:
        return
    whole = np.frombuffer(data, np.uint8)
    assert all(isinstance(text, str) for pair in metadata.items() for text in pair)
    for array in arrays.values():
        assert not array.flags.writeable
        assert array.nbytes == 0 or np.shares_memory(array, whole)
    assert sum(array.nbytes for array in arrays.values()) < len(data)
