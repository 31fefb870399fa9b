from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megacontext.engine.evidence import FEATURES, block_features, suffix_runs

COLUMN = {name: number for number, name in enumerate(FEATURES)}


def features(ids: np.ndarray, query: np.ndarray, fill: np.ndarray | None = None) -> np.ndarray:
    count = len(ids)
    return block_features(
        ids.astype(np.uint32),
        np.full(count, 32, np.uint8) if fill is None else fill,
        query,
        distance=np.arange(count, 0, -1) * 32,
        same_document=np.ones(count, np.bool_),
    )


def test_the_block_that_holds_the_last_tokens_has_the_longest_suffix() -> None:
    ids = np.arange(4 * 32).reshape(4, 32)
    query = np.array([900, 901, *ids[2, 5:12]])
    found = features(ids, query)
    assert found.shape == (4, len(FEATURES))
    assert found[:, COLUMN["suffix"]].tolist() == [0, 0, 7, 0]
    assert found[:, COLUMN["suffix_is_longest_and_newest"]].tolist() == [0, 0, 1, 0]
    assert found[2, COLUMN["overlap_8"]] > found[1, COLUMN["overlap_8"]] == 0


def test_a_match_at_the_blocks_end_has_nothing_to_copy() -> None:
    ids = np.arange(32)[None]
    assert suffix_runs(ids, np.array([29, 30, 31])).max() == 0


def test_filling_is_no_evidence() -> None:
    ids = np.zeros((2, 32), dtype=np.int64)
    ids[1, :4] = [5, 6, 7, 8]
    fill = np.array([2, 4], np.uint8)
    found = features(ids, np.array([0, 0, 0]), fill)
    assert found[1, COLUMN["suffix"]] == 0
    assert found[0, COLUMN["suffix"]] <= 2


@given(st.integers(0, 2**32 - 1))
def test_suffix_runs_agree_with_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 3, (2, 32))
    query = rng.integers(0, 3, 20)
    runs = suffix_runs(tokens, query)
    for block in range(2):
        for end in range(0, 31, 3):
            length = 0
            while length < min(16, end + 1) and tokens[block, end - length] == query[-1 - length]:
                length += 1
            assert runs[block, end] == length
