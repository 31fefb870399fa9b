from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import load

from megacontext.storage.tensors import decode, encode

dtypes = st.sampled_from([np.uint8, np.uint32, np.int64, np.float16])
arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5)))
named = st.dictionaries(st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"), arrays, max_size=4)


@settings(deadline=None, max_examples=50)
@given(named, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_round_trip(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    data = encode(tensors, metadata)
    back, found = decode(data)
    assert found == metadata
    assert back.keys() == tensors.keys()
    for name, array in back.items():
        assert array.dtype == tensors[name].dtype and not array.flags.writeable
        assert array.tobytes() == tensors[name].tobytes() and array.shape == tensors[name].shape


def test_the_order_of_arguments_does_not_matter() -> None:
    a, b = np.arange(3, dtype=np.uint8), np.ones((2, 2), np.float16)
    assert encode({"a": a, "b": b}, {"x": "1", "y": "2"}) == encode({"b": b, "a": a}, {"y": "2", "x": "1"})


def test_the_library_opens_it(tmp_path: Path) -> None:
    tensors = {"ids": np.arange(64, dtype=np.uint32).reshape(2, 32), "fill": np.array([32, 7], np.uint8)}
    data = encode(tensors, {"kind": "tokens"})
    for name, array in load(data).items():
        np.testing.assert_array_equal(array, tensors[name])
    (tmp_path / "x.safetensors").write_bytes(data)
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata() == {"kind": "tokens"}


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 8, b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]", encode({"a": np.ones(9, np.int64)}, {})[:-1]]
)
def test_other_bytes_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)
