from __future__ import annotations

import os
from pathlib import Path

import pytest

from megacontext.errors import CorruptObject, InvalidInput, RefConflict, UnknownReference
from megacontext.storage.files import FileLock
from megacontext.storage.hashing import digest
from megacontext.storage.refs import BRANCHES, TAGS, Refs, check_name

ONE, TWO = digest(b"1"), digest(b"2")


@pytest.fixture
def refs(tmp_path: Path) -> Refs:
    for folder in ("refs/heads", "refs/tags", "locks"):
        (tmp_path / folder).mkdir(parents=True)
    return Refs(tmp_path)


def test_refs_move_by_compare_and_swap(refs: Refs) -> None:
    refs.move(BRANCHES, "main", None, ONE)
    assert refs.branch("main") == ONE
    with pytest.raises(RefConflict):
        refs.move(BRANCHES, "main", None, TWO)
    with pytest.raises(RefConflict):
        refs.move(BRANCHES, "main", TWO, ONE)
    refs.move(BRANCHES, "main", ONE, TWO)
    refs.move(BRANCHES, "main", TWO, None)
    assert refs.read(BRANCHES, "main") is None and refs.names(BRANCHES) == []


def test_names_with_slashes_do_not_collide(refs: Refs) -> None:
    for name in ("a", "a/b", "a/b.c", "a+b"):
        refs.move(BRANCHES, name, None, ONE)
        refs.move(TAGS, name, None, TWO)
    assert refs.names(BRANCHES) == ["a", "a+b", "a/b", "a/b.c"] == refs.names(TAGS)


@pytest.mark.parametrize("name", ["", ".x", "-x", "a..b", "a//b", "a/", "x.", "HEAD", "a b", "a\n", "ä", ONE, "x" * 101])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_name(name)


def test_an_unknown_branch_suggests(refs: Refs) -> None:
    with pytest.raises(UnknownReference, match="none yet"):
        refs.branch("x")
    refs.move(BRANCHES, "experiment", None, ONE)
    with pytest.raises(UnknownReference, match="did you mean experiment"):
        refs.branch("experimnet")
    with pytest.raises(UnknownReference, match="there are experiment"):
        refs.branch("zzz")


def test_a_flip_in_every_byte_and_every_cut_is_noticed(refs: Refs, tmp_path: Path) -> None:
    refs.move(BRANCHES, "main", None, ONE)
    refs.set_head("main")
    for path, read in ((tmp_path / "refs/heads/main", lambda: refs.branch("main")), (tmp_path / "HEAD", lambda: refs.head)):
        data = path.read_bytes()
        damaged = [data[:cut] for cut in range(len(data))] + [
            data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(len(data))
        ]
        for each in damaged:
            path.write_bytes(each)
            with pytest.raises(CorruptObject, match=path.name):
                read()
        path.write_bytes(data)
        read()
    (tmp_path / "HEAD").unlink()
    with pytest.raises(CorruptObject, match="HEAD"):
        _ = refs.head


def test_an_interrupted_lock_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    lock = FileLock(tmp_path / "lock")
    monkeypatch.setattr(os, "ftruncate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        lock.acquire(wait=False, what="it")
    monkeypatch.undo()
    FileLock(tmp_path / "lock").acquire(wait=False, what="it")
