from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.errors import UnknownReference
from megacontext.storage import LocalObjectStore, ObjectReader, merkle
from megacontext.storage.hashing import digest
from megacontext.storage.merkle import MerkleList, RowSource


class MemoryStore:
    """Objects in a dictionary: these tests make thousands of tiny ones."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        self.objects[digest(data)] = data
        return digest(data)

    def get(self, name: str) -> bytes:
        return self.objects[name]

    def view(self, name: str) -> memoryview:
        return memoryview(self.objects[name])


def names(count: int, salt: str = "") -> list[str]:
    return [digest(f"{salt}{number}".encode()) for number in range(count)]


def build(store: MemoryStore, items: list[str], cuts: list[int] | None = None, row: RowSource | None = None) -> MerkleList:
    reader = ObjectReader(store)  # type: ignore[arg-type]
    result = MerkleList()
    bounds = [0, *sorted(cuts or []), len(items)]
    for start, stop in itertools.pairwise(bounds):
        result = merkle.append(reader, store, result, items[start:stop], row)  # type: ignore[arg-type]
    return result


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1100), st.lists(st.integers(0, 1100), max_size=4))
def test_pieces_equal_at_once(count: int, cuts: list[int]) -> None:
    store, items = MemoryStore(), names(count)
    whole = build(store, items)
    assert build(store, items, [min(cut, count) for cut in cuts]) == whole
    reader = ObjectReader(store)  # type: ignore[arg-type]
    assert list(merkle.iterate(reader, whole)) == items
    assert [merkle.get(reader, whole, index) for index in range(0, count, 37)] == items[::37]
    with pytest.raises(UnknownReference):
        merkle.get(reader, whole, count)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1100), st.integers(0, 1100), st.booleans())
def test_a_prefix_is_the_list_of_the_first_items(count: int, kept: int, with_rows: bool) -> None:
    store, items, kept = MemoryStore(), names(count), min(count, kept)
    row = RowSource((1, 2), lambda level, index: np.full((1, 2), level * 2000 + index, np.float16)) if with_rows else None
    whole = build(store, items, row=row)
    reader = ObjectReader(store)  # type: ignore[arg-type]
    assert merkle.prefix(reader, store, whole, kept) == build(store, items[:kept], row=row)  # type: ignore[arg-type]
    with pytest.raises(UnknownReference):
        merkle.prefix(reader, store, whole, count + 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "depth"), [(0, 1), (1, 1), (31, 1), (32, 2), (1023, 2), (1024, 3), (32768, 4)])
def test_a_full_node_always_has_a_parent(count: int, depth: int) -> None:
    assert MerkleList("", count).depth == depth


def test_rows_of_every_full_node_are_kept_at_every_level() -> None:
    def at(level: int, index: int) -> np.ndarray:
        return np.full((1, 2), level * 1000 + index % 1000, np.float16)

    store, items = MemoryStore(), names(32**3 + 40)
    result = build(store, items, [5, 1000, 32**3], RowSource((1, 2), at))
    reader = ObjectReader(store)  # type: ignore[arg-type]
    assert result.depth == 4
    for level in range(1, result.depth + 1):
        for index in {0, (result.count - 1) // 32**level}:
            rows = merkle.node_at(reader, result, level, index).arrays["gists"]
            full = min(32, result.count // 32 ** (level - 1) - index * 32)
            assert rows.shape == (full, 1, 2)
            assert [float(row[0, 0]) for row in rows] == [float(at(level - 1, index * 32 + slot)[0, 0]) for slot in range(full)]


def test_an_append_writes_few_objects(tmp_path: Path) -> None:
    store, items = MemoryStore(), names(5000)
    build(store, items)
    before = len(store.objects)
    result = build(store, items)
    merkle.append(ObjectReader(store), store, result, [digest(b"new")])  # type: ignore[arg-type]
    assert len(store.objects) - before <= result.depth
    local = LocalObjectStore(tmp_path / "o", tmp_path / "s")
    assert merkle.append(ObjectReader(local), local, MerkleList(), []) == MerkleList()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1100), st.integers(0, 1100), st.sets(st.integers(0, 1099), max_size=5))
def test_differing_finds_exactly_the_differences(left: int, right: int, changed: set[int]) -> None:
    store = MemoryStore()
    a, b = names(left), names(right)
    for index in changed:
        if index < right:
            b[index] = digest(b"other")
    found = list(merkle.differing(ObjectReader(store), build(store, a), build(store, b)))  # type: ignore[arg-type]
    longest = max(left, right)
    expected = [i for i in range(longest) if (a[i] if i < left else "") != (b[i] if i < right else "")]
    assert found == expected


def test_comparing_reads_only_what_differs() -> None:
    store, items = MemoryStore(), names(20_000)
    a = build(store, items)
    items[12_345] = digest(b"other")
    b = build(store, items)
    reads: list[str] = []

    class Counting(MemoryStore):
        def view(self, name: str) -> memoryview:
            reads.append(name)
            return store.view(name)

    assert list(merkle.differing(ObjectReader(Counting()), a, b)) == [12_345]  # type: ignore[arg-type]
    assert len(reads) == 2 * a.depth
