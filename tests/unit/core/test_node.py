from __future__ import annotations

import numpy as np
import pytest
from core_strategies import STEADY
from hypothesis import given
from hypothesis import strategies as st

from megacontext.core import (
    BLOCK,
    MAX_LOD,
    ancestor,
    children,
    node_blocks,
    node_tokens,
    parent,
    top_lod,
)
from megacontext.core.node import coarsest_nodes, first_blocks_of, parents_of, span_blocks_of

LODS = st.integers(0, MAX_LOD - 1)
INDEXES = st.integers(0, 1000)


@STEADY
@given(LODS, INDEXES)
def test_children_tile_their_parent_and_name_it(lod: int, index: int) -> None:
    if lod == 0:
        assert parent(0, index) == (1, index) and node_blocks(0, index) == node_blocks(1, index)
        return
    child_lod, span = children(lod, index)
    assert node_blocks(child_lod, span[0])[0] == node_blocks(lod, index)[0]
    assert node_blocks(child_lod, span[-1])[1] == node_blocks(lod, index)[1]
    assert all(parent(child_lod, child) == (lod, index) for child in span)
    assert ancestor(node_blocks(lod, index)[0], lod) == index


@STEADY
@given(st.lists(st.tuples(LODS, INDEXES), max_size=20))
def test_arrays_agree_with_scalars(nodes: list[tuple[int, int]]) -> None:
    lod = np.array([n[0] for n in nodes], np.int8)
    index = np.array([n[1] for n in nodes], np.int64)
    first, span = first_blocks_of(lod, index), span_blocks_of(lod)
    assert [(int(a), int(a + s)) for a, s in zip(first, span, strict=True)] == [node_blocks(*node) for node in nodes]
    assert parents_of(lod, index).tolist() == [parent(*node)[1] for node in nodes]


def test_token_spans() -> None:
    assert node_tokens(0, 3) == node_tokens(1, 3) == (96, 128)
    assert node_tokens(2, 1) == (1024, 2048)


@STEADY
@given(st.integers(0, BLOCK ** (MAX_LOD - 1)))
def test_coarsest_nodes_are_the_digits_in_base_32(blocks: int) -> None:
    lod, index = coarsest_nodes(blocks)
    first, span = first_blocks_of(lod, index), span_blocks_of(lod)
    assert first.tolist() == [0, *(first + span).tolist()][: lod.size]
    assert int(span.sum()) == blocks
    digits = [blocks // 32**k % 32 for k in range(top_lod(blocks))]
    assert lod.size == sum(digits)
    assert np.all(np.diff(lod) <= 0)


@pytest.mark.parametrize(("blocks", "lod"), [(0, 0), (1, 1), (31, 1), (32, 2), (1023, 2), (1024, 3)])
def test_top_lod(blocks: int, lod: int) -> None:
    assert top_lod(blocks) == lod
