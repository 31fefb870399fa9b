from __future__ import annotations

from pathlib import Path

import pytest
from storage_driver import add, create, ids_of

from megacontext.errors import (
    CorruptObject,
    FormatVersionError,
    InvalidInput,
    MemoryExists,
    MemoryNotFound,
    RefConflict,
    UnknownReference,
)
from megacontext.storage import Repository
from megacontext.storage.hashing import sealed, unsealed
from megacontext.storage.refs import BRANCHES


def test_create_and_open(tmp_path: Path) -> None:
    files = {"tokenizer.json": b"{}", "merges.txt": b"a b"}
    created = Repository.create(tmp_path / "x/m", tokenizer="tok-1", model="org/base", tokenizer_files=files)
    opened = Repository.open(str(tmp_path / "x/m"))
    assert opened.info == created.info
    assert (opened.info.tokenizer, opened.info.model) == ("tok-1", "org/base")
    assert (tmp_path / "x/m/tokenizer/merges.txt").read_bytes() == b"a b"
    assert (opened.head, opened.branches(), opened.tags()) == ("main", ["main"], [])
    assert (opened.snapshot().blocks, len(opened.snapshot().documents), opened.snapshot().timeline().levels) == (0, 0, 0)
    assert opened.fsck().clean


def test_a_folder_must_be_a_memory_or_free(tmp_path: Path) -> None:
    with pytest.raises(MemoryNotFound, match="megacontext init"):
        Repository.open(tmp_path)
    with pytest.raises(MemoryNotFound, match="megacontext init"):
        Repository.open(tmp_path / "nowhere")
    create(tmp_path / "m")
    with pytest.raises(MemoryExists):
        create(tmp_path / "m")
    (tmp_path / "file").write_text("x")
    with pytest.raises(MemoryNotFound):
        Repository.open(tmp_path / "file")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(InvalidInput, match="holds other files"):
            create(taken)
    with pytest.raises(InvalidInput, match="plain name"):
        create(tmp_path / "n", tokenizer_files={"../x": b""})
    with pytest.raises(InvalidInput, match="segment_blocks"):
        create(tmp_path / "o", segment_blocks=64)


def test_a_newer_format_is_told_from_damage(tmp_path: Path) -> None:
    create(tmp_path / "m")
    path = tmp_path / "m/megacontext.json"
    data = path.read_bytes()
    path.write_bytes(sealed({**unsealed(data), "format": 3}))
    with pytest.raises(FormatVersionError, match="upgrade"):
        Repository.open(tmp_path / "m")
    path.write_bytes(data.replace(b'"format":2', b'"format":3'))
    with pytest.raises(CorruptObject, match=r"megacontext\.json"):
        Repository.open(tmp_path / "m")
    path.write_bytes(data[:-10])
    with pytest.raises(CorruptObject):
        Repository.open(tmp_path / "m")


def test_branches_share_and_diverge(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    with repository.writer() as writer:
        add(writer, "a", 40)
        writer.commit("a", "me", time=5.0)
        objects = len(list((tmp_path / "m/objects").glob("*/*")))
        add(writer, "later", 1)
    repository.create_branch("session/1")
    assert len(list((tmp_path / "m/objects").glob("*/*"))) == objects
    with repository.writer("session/1") as writer:
        add(writer, "b", 40)
        writer.commit("b")
    assert [each.source for each in repository.snapshot("main").documents] == ["a", "later"]
    assert [each.source for each in repository.snapshot("session/1").documents] == ["a", "b"]
    assert repository.branches() == ["main", "session/1"]
    repository.checkout("session/1")
    assert Repository.open(tmp_path / "m").head == "session/1"
    with pytest.raises(InvalidInput, match="current branch"):
        repository.delete_branch("session/1")
    repository.checkout("main")
    repository.delete_branch("session/1")
    assert repository.branches() == ["main"]
    repository.create_branch("session/1")
    assert repository.snapshot("session/1").blocks == 40
    assert repository.fsck().clean


def test_tags_and_old_commits_are_time_travel(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    with repository.writer() as writer:
        for number in range(3):
            add(writer, f"d{number}", 20)
            name = writer.commit(f"commit {number}", "me", time=float(number))
            repository.create_tag(f"v{number}", name[:12])
            assert writer.commit("nothing new") == name
    history = list(repository.history())
    assert [commit.message for _, commit in history] == ["commit 2", "commit 1", "commit 0", "An empty memory"]
    for number in range(3):
        for reference in (f"v{number}", history[2 - number][0], history[2 - number][0][:8]):
            snapshot = repository.snapshot(reference)
            assert snapshot.blocks == 20 * (number + 1)
            assert snapshot.tokens(number * 20, number * 20 + 20).tolist() == ids_of(f"d{number}", 20).tolist()
    assert repository.commit("v1").author == "me"
    repository.delete_tag("v1")
    assert repository.tags() == ["v0", "v2"]


def test_unknown_references_suggest(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    repository.create_branch("experiment")
    repository.create_tag("release-1")
    for call in (repository.resolve, repository.snapshot, repository.commit, repository.writer, repository.checkout):
        with pytest.raises(UnknownReference, match="did you mean experiment"):
            call("experimemt")
    with pytest.raises(UnknownReference, match="did you mean release-1"):
        repository.delete_tag("release1")
    with pytest.raises(UnknownReference, match="experiment, main, release-1"):
        repository.resolve("ffffffff")
    tree = repository.commit().tokens
    with pytest.raises(UnknownReference, match="no branch, tag or commit"):
        repository.resolve(tree)
    with pytest.raises(InvalidInput, match="exists already"):
        repository.create_branch("experiment")
    with pytest.raises(InvalidInput, match="cannot name"):
        repository.create_tag("a b")
    with pytest.raises(UnknownReference):
        repository.create_branch("new", at="nowhere")


def test_a_branch_that_moved_is_a_conflict_and_loses_nothing(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    first = repository.resolve()
    with repository.writer() as writer:
        add(writer, "a", 2)
        second = writer.commit()
        repository.refs.move(BRANCHES, "main", second, first)
        add(writer, "b", 2)
        with pytest.raises(RefConflict):
            writer.commit()
        repository.refs.move(BRANCHES, "main", first, second)
        writer.commit()
    assert [each.source for each in repository.snapshot().documents] == ["a", "b"]
    assert repository.fsck().clean
