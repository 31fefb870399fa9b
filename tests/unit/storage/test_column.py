"""A column gives the rows of its pieces and its tail, wherever they lie, and refuses pieces that hold others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacontext.errors import CorruptObject, UnknownReference
from megacontext.storage import column
from megacontext.storage import gather as gathering
from megacontext.storage.column import Column, Rows
from megacontext.storage.gather import LARGEST_ROW, gather, position

SHAPES = [((), np.uint8), ((), np.uint32), ((32,), np.uint32), ((1, 5), np.float16), ((LARGEST_ROW,), np.uint32)]


def rows_of(count: int, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    return np.arange(count * int(np.prod(shape)), dtype=np.int64).astype(dtype).reshape(count, *shape)


def cut(rows: np.ndarray, piece: int, sealed: int) -> Column:
    """A column over `rows`, of which the first `sealed` lie in pieces with something else before and behind them."""

    def fetch(number: int) -> np.ndarray:
        part = rows[number * piece : min((number + 1) * piece, sealed)]
        surrounded = np.concatenate((part[:1], part, part[:1]))[1:-1]
        assert not np.shares_memory(surrounded, rows)
        return surrounded

    return Column("rows", fetch, piece, sealed, rows[sealed:])


@given(st.data(), st.sampled_from(SHAPES), st.sampled_from([1, 4, 32]), st.integers(0, 100), st.integers(0, 40))
def test_it_reads_like_one_array(data: st.DataObject, form: tuple, piece: int, sealed: int, tail: int) -> None:
    shape, dtype = form
    if shape == (LARGEST_ROW,):
        sealed, tail = sealed % 9, tail % 5
    rows = rows_of(sealed + tail, shape, dtype)
    whole = cut(rows, piece, sealed)
    count = st.integers(0, max(len(rows) - 1, 0))
    for _ in range(3):
        index = np.array(data.draw(st.lists(count, max_size=40 if len(rows) else 0)), np.int64)
        found = whole.at(index)
        np.testing.assert_array_equal(found, rows[index])
        assert found.dtype == rows.dtype and not found.flags.writeable
        start = data.draw(count)
        stop = data.draw(st.integers(start, len(rows)))
        np.testing.assert_array_equal(whole.range(start, stop), rows[start:stop])


def test_indices_may_be_of_any_kind_and_order() -> None:
    rows = rows_of(100, (32,), np.uint32)
    whole = cut(rows, 32, 96)
    for index in (np.arange(100)[::-3], np.array([99, 0, 99], np.uint8), np.arange(100).reshape(10, 10)[:, 3], [7, 7]):
        np.testing.assert_array_equal(whole.at(index), rows[np.asarray(index)])


@pytest.mark.parametrize("bad", [-1, 100, -(2**63), 2**63 - 1])
def test_outside_is_named(bad: int) -> None:
    whole = cut(rows_of(100, (), np.uint32), 32, 96)
    with pytest.raises(UnknownReference, match=rf"no rows {bad}; there are 100"):
        whole.at(np.array([0, bad, 5]))
    with pytest.raises(UnknownReference):
        whole.range(0, 101)


@pytest.mark.parametrize(
    "piece",
    [np.zeros((31, 32), np.uint32), np.zeros((32, 31), np.uint32), np.zeros((32, 32), np.int32), np.zeros(0, np.uint32)],
)
def test_a_piece_of_another_form_is_damage(piece: np.ndarray) -> None:
    whole = Column("rows", lambda number: piece, 32, 64, np.empty((0, 32), np.uint32))
    with pytest.raises(CorruptObject, match="piece 1 of rows"):
        whole.at(np.array([40]))
    with pytest.raises(CorruptObject, match="piece 0 of rows"):
        whole.range(0, 64)


FORMS = st.tuples(st.integers(1, 6), st.sampled_from([np.uint8, np.float16, np.uint32, np.int64]), st.integers(0, 70))


@given(st.data(), FORMS, st.lists(st.integers(-(2**62), 2**62), max_size=3), st.booleans())
def test_gathering_is_plain_indexing_or_refused(data: st.DataObject, form: tuple, wild: list[int], threads: bool) -> None:
    """Of arrays anywhere, rows that they have are given; for any other, next to them or far off, nothing is read."""
    width, dtype, count = form
    arrays = [rows_of(count + 1 + number, (width,), dtype) + dtype(number) for number in range(3)]
    which = np.array(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=30)))
    rows = np.array(data.draw(st.lists(st.integers(0, count), min_size=len(which), max_size=len(which))), np.int64)
    first, counts = (np.array([each(array) for array in arrays])[which] for each in (position, len))
    expected = np.stack([arrays[number][at] for number, at in zip(which, rows, strict=True)])

    def right() -> bool:
        return np.array_equal(gather(first, rows, counts, arrays[0]), expected)

    def wrong() -> bool:
        for bad in (-1, counts[0], *(each for each in wild if not 0 <= each < counts[0])):
            assert gather(first, np.concatenate(([bad], rows[1:])), counts, arrays[0]) is None
        return True

    if not threads:
        assert right() and wrong()
        return
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda act: act(), [right, wrong] * 4))


def test_what_lies_out_of_reach_is_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on systems that use more of the address space."""
    monkeypatch.setattr(gathering, "_END", 1 << 20)
    rows = rows_of(100, (32,), np.uint32)
    whole, index = cut(rows, 32, 96), np.array([99, 0, 40, 40])
    np.testing.assert_array_equal(whole.at(index), rows[index])


def test_an_index_that_changes_meanwhile_reads_what_was_asked_for() -> None:
    rows = rows_of(100, (32,), np.uint32)
    index = np.array([3, 50])

    def fetch(number: int) -> np.ndarray:
        index[:] = 2**50
        return rows[number * 32 : (number + 1) * 32].copy()

    np.testing.assert_array_equal(Column("rows", fetch, 32, 96, rows[96:]).at(index), rows[[3, 50]])


def test_rows_that_do_not_lie_as_they_should_are_copied() -> None:
    rows = rows_of(64, (8,), np.uint32)
    odd = np.frombuffer(b"x" + rows.tobytes(), np.uint8)[1:].view(np.uint32).reshape(64, 8)
    whole = Column("rows", lambda number: odd[number * 32 : (number + 1) * 32], 32, 64, rows[:0])
    np.testing.assert_array_equal(whole.at(np.array([40, 3])), rows[[40, 3]])


def test_only_rows_without_gaps_have_a_position() -> None:
    whole = np.zeros((4, 4))
    assert position(whole[1:]) - position(whole) == 4
    for gaps in (np.zeros((4, 4))[:, 1:], np.frombuffer(bytes(9), np.uint8)[1:].view(np.uint32)):
        with pytest.raises(ValueError, match="without gaps"):
            position(gaps)


def test_many_threads_read_while_pieces_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column, "REMEMBERED", 3)
    rows = rows_of(1000, (8,), np.uint32)
    whole = cut(rows, 32, 992)

    def read(seed: int) -> bool:
        random = np.random.default_rng(seed)
        indices = [random.integers(0, 1000, 50) for _ in range(200)]
        return all(np.array_equal(whole.at(index), rows[index]) for index in indices)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(16)))


def test_a_piece_that_another_thread_adds_between_two_looks_is_not_taken_from_nowhere() -> None:
    rows = rows_of(64, (8,), np.uint32)
    whole = cut(rows, 32, 64)
    pieces = whole._pieces

    class AddedMeanwhile:
        """What another thread does right after the places of pieces were looked at."""

        def __init__(self, first: np.ndarray) -> None:
            self.first = first

        def take(self, number: np.ndarray) -> np.ndarray:
            pieces.first = self.first
            seen = self.first.take(number)
            pieces.add(1, rows[32:])
            return seen

    pieces.first = AddedMeanwhile(pieces.first)  # type: ignore[assignment]
    np.testing.assert_array_equal(whole.at(np.array([40, 33])), rows[[40, 33]])


def test_a_view_stays_as_it_was_while_rows_are_added() -> None:
    rows = Rows((2,), np.uint32)
    rows.append(rows_of(3, (2,), np.uint32))
    view = rows.view()
    rows.append(rows_of(500, (2,), np.uint32))
    np.testing.assert_array_equal(view, rows_of(3, (2,), np.uint32))
