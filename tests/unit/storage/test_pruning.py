"""Pruning and restoring that ends in the middle: every object is in its place or archived, and nothing is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_driver import SPEC, Gister, add, create, ids_of
from test_repacker import Crash

from megacontext.errors import CorruptObject, DetailPruned
from megacontext.storage import DocumentRecord, Repository
from megacontext.storage.pruning import Detail, Pruner
from megacontext.storage.stubs import TOKENS, Stub

SIZES = {"a": 40, "b": 70, "c": 12, "d": 33, "e": 9}


def filled(path: Path) -> Repository:
    repository, gister = create(path), Gister()
    with repository.writer(layer=SPEC) as writer:
        for name, blocks in SIZES.items():
            add(writer, name, blocks, gister, last=7)
            if name in "be":
                writer.commit(name, time=1.0)
        writer.begin_document(source="raw", text_hash="raw")
        writer.append_blocks(ids_of("raw", 3), gists=gister.add(ids_of("raw", 3)))
        writer.end_document(original=b"\xff raw")
        writer.commit("raw", time=2.0)
    return repository


def detail_of(repository: Repository, names: str) -> tuple[Pruner, Detail]:
    pruner, head = repository.pruner(), repository.resolve()

    def chosen(record: DocumentRecord) -> bool:
        return record.source in names or record.source == "raw"

    return pruner, pruner.without_kept(pruner.find(head, chosen))


def prune(repository: Repository, names: str = "bd") -> None:
    pruner, detail = detail_of(repository, names)
    pruner.prune(detail)


def restore(repository: Repository) -> None:
    repository.pruner().restore()


def readable(repository: Repository) -> set[str]:
    """The documents whose raw tokens can all be read; those of others must refuse, never be others."""
    snapshot, found = repository.snapshot(), set()
    for record in snapshot.documents:
        expected = ids_of(record.source, record.blocks)
        try:
            np.testing.assert_array_equal(snapshot.tokens(*record.span), expected)
            found.add(record.source)
        except DetailPruned:
            for block in range(*record.span):
                if not snapshot.timeline().is_pruned(block):
                    np.testing.assert_array_equal(snapshot.tokens(block, block + 1)[0], expected[block - record.start_block])
    return found


def objects(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "objects").rglob("*") if path.is_file()}


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["prune", "restore"]), st.sets(st.sampled_from("abcde"), min_size=1)), max_size=5))
def test_any_order_of_acts_ends_with_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, set[str]]]
) -> None:
    repository = filled(tmp_path_factory.mktemp("m") / "m")
    before, gone = objects(repository.root), set[str]()
    for act, names in acts:
        pruner, detail = detail_of(repository, "".join(sorted(names)))
        if act == "prune":
            pruner.prune(detail)
            gone |= names | {"raw"}
        else:
            pruner.restore(detail)
            gone -= names | {"raw"}
        seen = readable(Repository.open(repository.root))
        assert seen == {*SIZES, "raw"} - gone
        assert repository.fsck().clean
    restore(repository)
    assert objects(repository.root) == before and repository.fsck().notes == ()


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.long), 17])
@pytest.mark.parametrize(("first", "change"), [(None, prune), (prune, restore), (prune, lambda r: prune(r, "abcd"))])
def test_killed_at_any_step_nothing_is_lost(
    quick_path: Path, first: Callable[[Repository], None] | None, change: Callable[[Repository], None], every: int
) -> None:
    memory = quick_path / "memory"
    whole = objects(filled(memory).root)
    if first is not None:
        first(Repository.open(memory))
    crash = Crash(change)
    steps = crash.steps(Path(shutil.copytree(memory, quick_path / "copy")))
    after = readable(Repository.open(quick_path / "copy"))
    before = readable(Repository.open(memory))
    assert before != after and steps > 20
    for step in range(0, steps, every):
        image = quick_path / "image"
        shutil.copytree(memory, image)
        crash.at(step, image)
        survivor = Repository.open(image)
        seen = readable(survivor)
        assert before & after <= seen <= before | after, step
        report = survivor.fsck()
        assert report.clean, (step, report.findings)
        change(survivor)
        assert readable(Repository.open(image)) == after
        restore(survivor)
        assert objects(image) == whole and Repository.open(image).fsck().notes == ()
        assert not list((image / "pruned").iterdir()) and not list((image / "archive").iterdir())
        shutil.rmtree(image)


def test_a_reader_of_before_is_told_when_the_memory_is_pruned_meanwhile(tmp_path: Path) -> None:
    repository = filled(tmp_path / "m")
    snapshot = Repository.open(repository.root).snapshot()
    prune(repository, "b")
    with pytest.raises(DetailPruned, match="open it again"):
        snapshot.tokens(64, 96)


def test_a_stub_that_was_changed_is_damage(tmp_path: Path) -> None:
    repository = filled(tmp_path / "m")
    prune(repository)
    path = sorted((repository.root / "pruned").iterdir())[0]
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    assert path.name in {finding.name for finding in repository.fsck().findings}


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(1, 9)), max_size=4))
def test_stubs_keep_the_other_rows(rows: int, spans: list[tuple[int, int]]) -> None:
    arrays = {"ids": ids_of("x", rows), "doc": np.arange(rows, dtype=np.uint32), "fill": np.full(rows, 32, np.uint8)}
    ranges = [(start, min(start + length, rows)) for start, length in spans if start < rows]
    data = Stub.of_tokens("n", arrays, ranges, "").to_bytes()
    back = Stub.from_bytes(data, "n")
    gone = np.zeros(rows, np.bool_)
    for start, stop in ranges:
        gone[start:stop] = True
    assert (back.kind, back.rows) == (TOKENS, gone.sum())
    np.testing.assert_array_equal(back.arrays["ids"], np.where(gone[:, None], 0, arrays["ids"]))
    np.testing.assert_array_equal(back.arrays["doc"], arrays["doc"])
    # No trace of what was left out.
    assert not any(arrays["ids"][at].tobytes() in data for at in np.flatnonzero(gone))
    with pytest.raises(CorruptObject):
        Stub.from_bytes(data, "m")
