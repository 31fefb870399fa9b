"""Rows read together are rows read alone, whatever joins, leaves or is cut back meanwhile; for every family."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.errors import BudgetError, ConfigError, InvalidInput
from megacontext.models.base_lm import BaseLM
from megacontext.models.batch_cache import RowPass, RowStore
from megacontext.models.cache import KeyValueCache, crop, fork, is_croppable
from megacontext.testing.tiny_models import FAMILIES, tiny_base

ROWS, SLOTS = 4, 96
TOLERANCE = 3e-5
BASES = {family: tiny_base(family) for family in FAMILIES}


def fresh(base: BaseLM, ids: list[int]) -> torch.Tensor:
    """Logits [V] behind ``ids``, read alone and at once."""
    with torch.no_grad():
        return base(base.embed(torch.tensor([ids])), torch.arange(len(ids))[None]).logits[0, -1]


def extend(
    base: BaseLM, store: RowStore, caches: list[KeyValueCache], ids: list[list[int]], settle: bool = True
) -> tuple[RowPass, torch.Tensor]:
    """Read the new ``ids`` of some rows in one pass: their logits [b, V]."""
    rows = store.together(caches, [len(each) for each in ids], base.device)
    tokens = torch.zeros(rows.size, rows.new, dtype=torch.int64)
    for at, new in zip(rows.order.tolist(), ids, strict=True):
        tokens[at, rows.new - len(new) :] = torch.tensor(new)
    with torch.no_grad():
        logits = base.forward_rows(base.embed(tokens), rows.at, rows)
    if settle:
        store.settle(rows)
    return rows, logits[torch.from_numpy(rows.order)]


ops = st.lists(
    st.tuples(
        st.sets(st.integers(0, ROWS - 1), min_size=1),
        st.lists(st.integers(1, 30), min_size=ROWS, max_size=ROWS),
        st.sampled_from(["read", "read", "fail", "cut", "leave"]),
        st.integers(0, 2**20),
    ),
    min_size=2,
    max_size=8,
)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@settings(max_examples=4)
@given(script=ops)
def test_rows_together_are_rows_alone(family: str, script: list[tuple[set[int], list[int], str, int]]) -> None:
    base, store = BASES[family], RowStore(rows=ROWS, slots=SLOTS)
    held: dict[int, list[int]] = {row: [] for row in range(ROWS)}
    caches = {row: store.open(row) for row in range(ROWS)}
    for chosen, counts, kind, seed in script:
        rows = sorted(chosen)
        draw = torch.Generator().manual_seed(seed)
        new = [torch.randint(0, 256, (counts[row],), generator=draw).tolist() for row in rows]
        if kind == "leave":
            held[rows[0]], caches[rows[0]] = [], store.open(rows[0])
        elif kind == "cut":
            keep = seed % (len(held[rows[0]]) + 1)
            crop(caches[rows[0]], keep)
            del held[rows[0]][keep:]
        elif all(len(held[row]) + len(ids) <= SLOTS for row, ids in zip(rows, new, strict=True)):
            _, logits = extend(base, store, [caches[row] for row in rows], new, settle=kind == "read")
            for row, ids, mine in zip(rows, new, logits, strict=True):
                torch.testing.assert_close(mine, fresh(base, held[row] + ids), atol=TOLERANCE, rtol=1e-4)
                if kind == "read":
                    held[row] += ids
        assert [caches[row].length for row in range(ROWS)] == [len(held[row]) for row in range(ROWS)]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_row_is_a_cache_like_any(family: str) -> None:
    base, store = BASES[family], RowStore(rows=2, slots=SLOTS)
    caches = [store.open(row) for row in range(2)]
    ids = [(torch.arange(40) * (7 + row) % 256).tolist() for row in range(2)]
    extend(base, store, caches, [each[:20] for each in ids])
    copied = fork(caches[0])
    with torch.no_grad():
        alone = base(base.embed(torch.tensor([ids[0][20:]])), torch.arange(20, 40)[None], cache=caches[0]).logits[0, -1]
        other = base(base.embed(torch.tensor([ids[1][20:]])), torch.arange(20, 40)[None], cache=copied).logits[0, -1]
    assert is_croppable(caches[0]) and caches[0].length == copied.length == 40 and caches[1].length == 20
    torch.testing.assert_close(alone, fresh(base, ids[0]), atol=TOLERANCE, rtol=1e-4)
    torch.testing.assert_close(other, fresh(base, ids[0][:20] + ids[1][20:]), atol=TOLERANCE, rtol=1e-4)
    _, logits = extend(base, store, caches, [[5], [6]])
    torch.testing.assert_close(logits[0], fresh(base, ids[0] + [5]), atol=TOLERANCE, rtol=1e-4)


def test_layers_of_a_row_can_be_read_and_replaced(llama: BaseLM) -> None:
    store = RowStore(rows=2, slots=8)
    cache, other = store.open(1), store.open(0)
    assert store.nbytes == 0
    extend(llama, store, [cache, other], [[1, 2, 3], [4]])
    layer = cache.states.layers[0]
    keys, values = layer.keys.clone(), layer.values.clone()
    layer.keys = layer.keys[:, :, [2, 0]]
    layer.values = layer.values[:, :, [2, 0]]
    torch.testing.assert_close(layer.keys, keys[:, :, [2, 0]])
    torch.testing.assert_close(layer.values, values[:, :, [2, 0]])
    assert layer.get_seq_length() == 2 and other.states.layers[0].keys.shape[2] == 1
    assert store.nbytes == sum(2 * 2 * 2 * 8 * 8 * 4 for _ in cache.states.layers)
    layer.reset()
    assert layer.get_seq_length() == 0 and layer.get_max_length() == 8


def test_rows_that_lie_far_apart_are_gathered_and_near_ones_read_in_place(llama: BaseLM) -> None:
    store = RowStore(rows=8, slots=16)
    caches = [store.open(row) for row in range(8)]
    near, logits = extend(llama, store, [caches[1], caches[3], caches[2]], [[9], [8, 7], [6]])
    far, more = extend(llama, store, [caches[0], caches[7]], [[9], [8, 7]])
    assert (near.size, far.size) == (3, 2)
    torch.testing.assert_close(more, logits[:2], atol=TOLERANCE, rtol=1e-4)


def test_what_cannot_be_is_refused_and_changes_nothing(llama: BaseLM) -> None:
    with pytest.raises(ConfigError, match="at least one row"):
        RowStore(rows=0, slots=4)
    store = RowStore(rows=2, slots=4)
    cache = store.open(0)
    with pytest.raises(BudgetError, match="make rows longer"):
        store.together([cache], [5], llama.device)
    with pytest.raises(InvalidInput, match="each of them once"):
        store.together([cache, cache], [1, 1], llama.device)
    store.open(0)
    with pytest.raises(InvalidInput, match="open rows of this store"):
        store.together([cache], [1], llama.device)
    assert cache.length == 0
