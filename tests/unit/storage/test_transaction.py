"""A transaction is seen whole or not at all, by readers beside it and after a crash at any step."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from storage_driver import OTHER, SPEC, Gister, add, create, ids_of
from test_crash import Disk

from megacontext.errors import BranchLocked, InvalidInput
from megacontext.storage import Repository


def sources(repository: Repository, branch: str = "main") -> list[str]:
    return [record.source for record in repository.snapshot(branch).documents]


def start(path: Path) -> tuple[Repository, Gister]:
    repository, gister = create(path), Gister()
    with repository.writer(layer=SPEC) as writer:
        add(writer, "a", 33, gister)
        writer.commit("first", time=1.0)
    return repository, gister


def change(repository: Repository, gister: Gister, parents: tuple[str, ...] = ()) -> str:
    with repository.transaction() as transaction:
        with transaction.writer(SPEC) as writer:
            for source in ("b", "c"):
                add(writer, source, 20, gister)
                made = writer.commit(f"with {source}", time=2.0)
        return transaction.apply(made, message="both", author="ada", time=3.0, parents=parents)


@pytest.mark.slow
def test_a_crash_at_any_step_leaves_all_or_nothing(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, image = quick_path / "memory", quick_path / "image"
    repository, gister = start(memory)
    # A document that a crash left unfinished; its gists must not come back on top of another commit.
    with repository.writer(layer=SPEC) as writer:
        half = gister.copy()
        writer.begin_document(source="half", text_hash="half")
        writer.append_blocks(ids_of("half", 40), gists=half.add(ids_of("half", 40)))
    found: list[list[str]] = []

    def crash() -> None:
        shutil.copytree(memory, image)
        survivor = Repository.open(image)
        found.append(sources(survivor))
        if len(found) % 3 == 0 or found[-1] != found[0]:
            report = survivor.fsck()
            assert report.clean, report.findings
        if found[-1] != found[0]:
            with survivor.writer(layer=SPEC) as writer:
                assert writer.document is None
        shutil.rmtree(image)

    with Disk(crash).installed(monkeypatch):
        name = change(repository, gister)
    assert found[0] == ["a"] and found[-1] == ["a", "b", "c"] and len(found) > 30
    turn = found.index(["a", "b", "c"])
    assert all(each == ["a"] for each in found[:turn]) and all(each == ["a", "b", "c"] for each in found[turn:])
    assert sources(repository) == ["a", "b", "c"] and repository.fsck().clean
    names = [each for each, _ in repository.history()]
    assert names[0] == name and [commit.message for _, commit in repository.history()] == ["both", "first", "An empty memory"]


def test_what_was_written_aside_is_gone_with_the_next_writer(tmp_path: Path) -> None:
    repository, gister = start(tmp_path / "m")
    before = repository.refs.branch("main")
    with repository.transaction() as transaction, transaction.writer(SPEC) as writer:
        add(writer, "b", 3, gister.copy())
    assert sources(repository) == ["a"] and repository.branches() == ["main"]
    with repository.transaction() as transaction:
        assert transaction.commit_name == before
        with transaction.writer(SPEC) as writer:
            assert writer.blocks == 33
            add(writer, "c", 3, gister)
            made = writer.commit("c")
        transaction.apply(made, message="c")
    assert sources(repository) == ["a", "c"]
    with repository.writer(layer=SPEC) as writer:
        add(writer, "d", 40, gister)
        writer.commit("d")
    assert repository.fsck().clean and repository.fsck().notes == ()


def test_nobody_else_writes_meanwhile_and_what_was_acknowledged_comes_first(tmp_path: Path) -> None:
    repository, gister = start(tmp_path / "m")
    with repository.writer(layer=SPEC) as writer:
        add(writer, "said", 2, gister)
    with repository.transaction() as transaction:
        assert sources(repository, transaction.commit_name) == ["a", "said"]
        with pytest.raises(BranchLocked):
            repository.writer()
    assert sources(repository) == ["a", "said"]


def test_a_move_along_history_takes_no_copy(tmp_path: Path) -> None:
    repository, gister = start(tmp_path / "m")
    repository.create_branch("ahead")
    with repository.writer("ahead", layer=SPEC) as writer:
        add(writer, "b", 3, gister)
        tip = writer.commit("b")
    with repository.transaction() as transaction:
        transaction.move(tip)
        assert transaction.commit_name == tip
    assert repository.refs.branch("main") == tip and sources(repository) == ["a", "b"]
    with repository.writer(layer=SPEC) as writer:
        add(writer, "c", 60, gister)
        writer.commit("c")
    assert repository.fsck().clean


def test_a_merge_names_the_other_commit(tmp_path: Path) -> None:
    repository, gister = start(tmp_path / "m")
    before, first = repository.refs.branch("main"), [name for name, _ in repository.history()][-1]
    name = change(repository, gister, (first,))
    assert repository.commit(name).parents == (before, first) and repository.commit(name).author == "ada"
    with repository.transaction() as transaction, pytest.raises(InvalidInput):
        transaction.writer(OTHER)
