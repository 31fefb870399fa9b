from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacontext.engine import ahead as module
from megacontext.engine.ahead import ahead

THREAD = "ahead"


def counting(size: int) -> Iterator[int]:
    yield from range(size)


@given(sizes=st.lists(st.integers(0, 5), max_size=40), weights=st.integers(0, 2**19))
def test_order_and_pieces_are_those_of_doing_one_after_the_other(sizes: list[int], weights: int) -> None:
    found = [(size, list(pieces)) for size, pieces in ahead(sizes, counting, lambda size: weights)]
    assert found == [(size, list(range(size))) for size in sizes]


def test_pieces_are_made_in_another_thread_and_items_are_taken_in_this_one() -> None:
    threads: set[str] = set()

    def items() -> Iterator[int]:
        for item in range(3):
            assert threading.current_thread() is threading.main_thread()
            yield item

    def pieces(item: int) -> Iterator[int]:
        threads.add(threading.current_thread().name.partition("_")[0])
        yield item

    assert [list(each) for _, each in ahead(items(), pieces, lambda _: 1)] == [[0], [1], [2]]
    assert threads == {THREAD}


def test_only_so_much_waits() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    light = ahead(items(), counting, lambda _: 1)
    next(light)
    assert len(taken) == module.MOST_ITEMS + 1
    light.close()
    taken.clear()
    heavy = ahead(items(), counting, lambda _: module.MOST_WEIGHT)
    next(heavy)
    assert len(taken) == 2
    heavy.close()


def test_an_error_comes_when_its_turn_has_come() -> None:
    def pieces(item: int) -> Iterator[int]:
        yield item
        if item == 2:
            raise ValueError("broken")

    seen = []
    with pytest.raises(ValueError, match="broken"):
        for _, each in ahead(range(5), pieces, lambda _: 1):
            seen += list(each)
    assert seen == [0, 1]


def test_given_up_it_leaves_no_thread() -> None:
    begun = ahead(range(100), counting, lambda _: 1)
    next(begun)
    begun.close()
    assert not [each for each in threading.enumerate() if each.name.startswith(THREAD)]


def test_what_is_not_asked_for_is_no_hindrance() -> None:
    assert [item for item, _ in ahead(range(40), counting, lambda _: 1)] == list(range(40))
