"""Readers beside a writer, and writers against each other, in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import concurrency_driver as driver
import pytest

from megacontext.errors import BranchLocked
from megacontext.storage import Repository

READERS = 10


def side_by_side(*calls: tuple[Callable[..., dict[str, Any]], Any, Any, Any]) -> list[dict[str, Any]]:
    """Calls functions of the driver, each in a process of its own; their results in order."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["megacontext.storage"])
    with ProcessPoolExecutor(len(calls), mp_context=context) as pool:
        running = [pool.submit(function, *arguments) for function, *arguments in calls]
        return [each.result() for each in running]


def read_beside_a_writer(path: Path, seconds: float) -> None:
    repository = Repository.create(path, segment_blocks=32)
    reads = [(driver.read, path, seconds, number) for number in range(READERS)]
    written, *readers = side_by_side((driver.write, path, seconds, 0), *reads)
    assert len(readers) == READERS and all(reader["checks"] >= 2 for reader in readers), readers
    assert sum(reader["views"] for reader in readers) > READERS, readers
    assert written["commits"] > 0 and max(reader["blocks"] for reader in readers) > 100
    snapshot = repository.snapshot()
    driver.view_of(snapshot)
    assert {record.source: record.ordinal for record in snapshot.documents.live()} == written["live"]
    assert repository.fsck().clean


@pytest.mark.slow
def test_ten_readers_each_see_a_view_that_is_whole_and_stays(tmp_path: Path) -> None:
    read_beside_a_writer(tmp_path / "m", 10)


@pytest.mark.long
def test_ten_readers_for_a_minute(tmp_path: Path) -> None:
    read_beside_a_writer(tmp_path / "m", 60)


def test_two_writers_of_a_branch_take_turns_and_lose_nothing(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "m", segment_blocks=32)
    side_by_side(*((driver.contend, repository.root, name, 20) for name in ("a", "b")))
    snapshot = repository.snapshot()
    driver.view_of(snapshot)
    sources = [record.source for record in snapshot.documents]
    assert sorted(sources) == sorted(f"{name} {number}" for name in ("a", "b") for number in range(20))
    for name in ("a", "b"):
        own = [source for source in sources if source.startswith(name)]
        assert own == [f"{name} {number}" for number in range(20)]
    assert repository.fsck().clean


def test_the_one_that_comes_second_is_told_who_writes_and_may_try_again(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "m", segment_blocks=32)
    with repository.writer(layer=driver.SPEC) as writer:
        driver.append(writer, "first", 3, None)
        other = Repository.open(tmp_path / "m")
        for hold in (other.writer, other.transaction, lambda: other.writer(layer=driver.SPEC)):
            with pytest.raises(BranchLocked, match=rf"'main' is being written by process {os.getpid()}"):
                hold()
        driver.append(writer, "second", 3, None)
    with other.writer(layer=driver.SPEC) as again:
        driver.append(again, "third", 1, None)
    driver.view_of(repository.snapshot())
    assert [record.source for record in repository.snapshot().documents] == ["first", "second", "third"]


def test_of_two_that_create_a_branch_one_gets_it(tmp_path: Path) -> None:
    repository, names = Repository.create(tmp_path / "m"), [f"b{number}" for number in range(40)]
    found = side_by_side(*((driver.claim, repository.root, names) for _ in range(3)))
    got = [name for each in found for name in each["mine"]]
    assert sorted(got) == sorted(names)
    assert repository.branches() == sorted([*names, "main"])
    assert repository.fsck().clean
