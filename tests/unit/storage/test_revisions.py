"""Commits are named as git names them, wherever one is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacontext.errors import UnknownReference
from megacontext.storage import Commit, Repository
from megacontext.storage.revisions import Revision, follow, parse


def line(repository: Repository, count: int) -> list[str]:
    """Commits, newest first, the first one of the memory included."""
    with repository.writer() as writer:
        for at in range(count):
            writer.begin_document(source=f"text:{at}")
            writer.append_blocks(np.ones((1, 32), np.uint32))
            writer.end_document()
            writer.commit(f"commit {at}")
    return [name for name, _ in repository.history()]


def test_steps_back_from_any_name(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "m", created=0.0, segment_blocks=32)
    commits = line(repository, 3)
    repository.create_tag("v1", commits[1])
    for name in ("main", "HEAD", "@", commits[0], commits[0][:10]):
        assert repository.resolve(name) == commits[0]
        assert {repository.resolve(name + back) for back in ("~1", "^", "~", "^1", "~0^")} == {commits[1]}
        assert {repository.resolve(name + back) for back in ("^^", "~2", "^0~1^", "~~")} == {commits[2]}
    assert repository.resolve("~1") == commits[1] == repository.resolve("v1^0") and repository.resolve("v1~2") == commits[3]
    assert repository.snapshot("HEAD").commit_name == commits[0] and repository.snapshot("v1^").commit_name == commits[2]
    assert repository.create_branch("old", "main~3") == commits[3]
    assert [name for name, _ in repository.history("main~2")] == commits[2:]


@pytest.mark.parametrize("name", ["main~4", "main^2", "main^^^^", "HEAD~99999999999999999999", "v2~1", "", "~", "main~x"])
def test_what_is_not_there_is_an_error(tmp_path: Path, name: str) -> None:
    repository = Repository.create(tmp_path / "m", created=0.0, segment_blocks=32)
    if name == "~":
        name = "~5"
    line(repository, 3)
    with pytest.raises(UnknownReference):
        repository.resolve(name)


def test_digits_that_several_commits_begin_with_are_an_error(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "m", created=0.0, segment_blocks=32)
    commits = line(repository, 2)
    folder = tmp_path / "m" / "objects" / commits[0][:2]
    twin = commits[0][:6] + "".join("0" if digit != "0" else "1" for digit in commits[0][6:])
    (folder / twin).write_bytes((folder / commits[0]).read_bytes())
    repository = Repository.open(tmp_path / "m")
    assert repository.resolve(commits[0] + "~1") == commits[1]
    # What does not hold what its name says is no commit, so nothing is ambiguous.
    assert repository.resolve(commits[0][:6]) == commits[0]


@given(st.lists(st.tuples(st.sampled_from("~^"), st.integers(0, 5)), max_size=4))
def test_steps_are_followed_in_order(steps: list[tuple[str, int]]) -> None:
    """On a made-up graph in which the k-th parent of a commit is its name and k."""

    def load(name: str) -> Commit:
        return Commit(tokens="", documents="", parents=tuple(f"{name}{k}" for k in (1, 2, 3)))

    text = "x" + "".join(f"{sign}{number}" for sign, number in steps)
    assert parse(text, "main") == Revision("x", tuple(steps))
    wanted = "x"
    for sign, number in steps:
        if sign == "^" and number > 3:
            with pytest.raises(UnknownReference):
                follow("x", parse(text, "main"), load)
            return
        wanted += "1" * number if sign == "~" else str(number) * (number > 0)
    assert follow("x", parse(text, "main"), load) == wanted
