"""Comparing documents: what differs is found whatever the edits were, and little else is read."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_driver import create

from megacontext.storage import BranchWriter, DocumentRecord, ObjectReader, Repository
from megacontext.storage.compare import commit_changes
from megacontext.storage.objects import LocalObjectStore

Model = dict[str, str]
Edits = list[tuple[str, str]]


def put(writer: BranchWriter, source: str, text_hash: str, known: dict[str, DocumentRecord]) -> None:
    """A new document, or a new version in the place of the old one."""
    old = known.get(source)
    writer.begin_document(source=source, text_hash=text_hash, version=old.version + 1 if old else 1, ingested_at=1.0)
    writer.append_blocks(np.full((1, 32), sum(text_hash.encode()), np.uint32))
    known[source] = writer.end_document(replaces=old if old and not old.removed else None)


def take_out(writer: BranchWriter, source: str, known: dict[str, DocumentRecord]) -> None:
    known[source] = writer.remove_document(known[source], removed_at=1.0)


def write(writer: BranchWriter, edits: Edits, known: dict[str, DocumentRecord], model: Model) -> None:
    """Edits are a source and its new text, '' to remove it."""
    for source, text in edits:
        if text and model.get(source) != text:
            put(writer, source, text, known)
            model[source] = text
        elif not text and source in model:
            take_out(writer, source, known)
            del model[source]


def expected(left: Model, right: Model) -> dict[str, tuple[str | None, str | None]]:
    names = sorted(left.keys() | right.keys())
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}


def seen(record: DocumentRecord | None) -> str | None:
    return None if record is None or record.removed else record.text_hash


EDITS = st.lists(st.tuples(st.sampled_from([f"s{n}" for n in range(9)]), st.sampled_from(["", "x", "y", "z"])), max_size=40)


@settings(max_examples=15)
@given(common=EDITS, ours=EDITS, theirs=EDITS)
def test_any_edits_compare_as_their_models_do(
    tmp_path_factory: pytest.TempPathFactory,
    common: list[tuple[str, str]],
    ours: list[tuple[str, str]],
    theirs: list[tuple[str, str]],
) -> None:
    repository = create(tmp_path_factory.mktemp("m"))
    known: dict[str, DocumentRecord] = {}
    model: Model = {}
    with repository.writer() as writer:
        write(writer, common, known, model)
        writer.commit("common", time=1.0)
    repository.create_branch("theirs")
    states: dict[str, Model] = {"base": dict(model)}
    repository.create_tag("base")
    for branch, edits in (("main", ours), ("theirs", theirs)):
        mine = dict(model)
        with repository.writer(branch) as writer:
            half = len(edits) // 2
            records = dict(known)
            write(writer, edits[:half], records, mine)
            writer.commit("half", time=2.0)
            write(writer, edits[half:], records, mine)
        states[branch] = mine
    for left, right in itertools.permutations(states, 2):
        found = repository.compare(repository.snapshot(left), repository.snapshot(right))
        assert {each.source: (seen(each.before), seen(each.after)) for each in found} == expected(states[left], states[right])


def test_conversations_are_told_apart_by_their_tokens(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    repository.create_branch("other")
    repository.create_branch("same")
    for branch, token in (("main", 1), ("other", 2), ("same", 1)):
        with repository.writer(branch) as writer:
            writer.begin_document(source="talk", open=True)
            writer.append_tokens(np.full(40, token, np.uint32))
            if branch == "same":
                writer.end_document()
            writer.commit("said")
    main, other, same = (repository.snapshot(name) for name in ("main", "other", "same"))
    assert [each.source for each in repository.compare(main, other)] == ["talk"]
    assert repository.compare(main, same) == []


class Counting(LocalObjectStore):
    """Notes which objects are read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "objects", root / "staging" / "unused")
        self.read: list[str] = []

    def get(self, name: str) -> bytes:
        self.read.append(name)
        return super().get(name)

    def view(self, name: str) -> memoryview:
        self.read.append(name)
        return super().view(name)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, list[str]]:
    """2,000 documents and then commits of one changed, one removed and one added document each."""
    repository = create(tmp_path_factory.mktemp("wide"))
    known: dict[str, DocumentRecord] = {}
    names: list[str] = []
    with repository.writer() as writer:
        for number in range(2000):
            put(writer, f"d{number}", f"h{number}", known)
        names.append(writer.commit("all"))
        for step in range(10):
            put(writer, f"d{step * 190}", f"new {step}", known)
            take_out(writer, f"d{step * 190 + 1}", known)
            put(writer, f"more {step}", "m", known)
            names.append(writer.commit(f"step {step}"))
    return repository, names


def test_comparing_reads_in_proportion_to_the_difference(wide: tuple[Repository, list[str]]) -> None:
    repository, names = wide

    def reads(left: str, right: str) -> tuple[int, int]:
        store = Counting(repository.root)
        reader = ObjectReader(store)
        found = commit_changes(reader, repository.commit(left), repository.commit(right))
        return len(store.read), len(found)

    one, ten = reads(names[-2], names[-1]), reads(names[0], names[-1])
    assert (one[1], ten[1]) == (3, 30)
    # Two roots, the new pages (30 records make one more), a path to each, and the pages of what was replaced.
    assert one[0] <= 10
    assert ten[0] <= one[0] + 18
    assert reads(names[0], names[0]) == (0, 0)


def test_a_source_that_came_back_is_found_behind_its_tombstone(wide: tuple[Repository, list[str]]) -> None:
    repository, names = wide
    repository.create_branch("back", names[-1])
    with repository.writer("back") as writer:
        known = {each.source: each for each in writer.snapshot().documents}
        put(writer, "d1", "again", known)
        name = writer.commit("back")
    (change,) = repository.changes(names[-1], name)
    assert change.live_before is None and change.live_after is not None
    assert change.before is not None and change.before.removed and change.before.source == "d1"
    (over,) = [each for each in repository.changes(names[0], name) if each.source == "d1"]
    assert seen(over.live_before) == "h1" and seen(over.live_after) == "again"
