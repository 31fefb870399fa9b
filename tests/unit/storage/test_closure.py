"""Everything that a commit needs is in its closure, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from storage_driver import SPEC, Gister, add, create, ids_of, say

from megacontext.errors import CorruptObject, MissingObject
from megacontext.storage import Commit, Repository
from megacontext.storage.closure import COMMIT_FIELDS, Closure, Named
from megacontext.storage.hashing import canonical
from megacontext.storage.objects import ObjectReader
from megacontext.storage.place import local_store
from megacontext.storage.walk import Walk


def filled(path: Path) -> Repository:
    """History, deep lists, dead blocks, an open document, two branches, an original whose bytes are those of a commit."""
    repository, gister = create(path), Gister()
    with repository.writer(layer=SPEC) as writer:
        for number in range(34):
            add(writer, f"d{number}", 33, gister)
        writer.commit("one", time=2.0)
        writer.remove_document(repository.snapshot().documents[0], patches={2: (np.array([0]), gister.lods[2][:1])})
        writer.commit("two", time=3.0)
    repository.create_tag("v1")
    repository.create_branch("other")
    with repository.writer("other") as writer:
        writer.begin_document(source="raw")
        writer.append_blocks(ids_of("raw", 1))
        writer.end_document(original=repository.read_object(repository.resolve("v1")))
        writer.begin_document(source="chat", open=True)
        say(writer, np.arange(50, dtype=np.uint32))
        writer.commit("three", time=4.0)
    return repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return filled(tmp_path_factory.mktemp("closure") / "m")


def reader(repository: Repository) -> ObjectReader:
    return ObjectReader(local_store(repository.root, "unused"))


def test_it_is_what_fsck_walks_and_all_there_is(repository: Repository) -> None:
    closure, walk = Closure(reader(repository)), Walk(reader(repository), 32)
    heads = [repository.resolve(name) for name in ("main", "other", "v1")]
    found = list(closure.of(heads))
    for head in heads:
        walk.history(head)
    assert not walk.findings
    names = [named.name for named in found]
    assert len(names) == len(set(names)) and set(names) == closure.names == walk.reached
    assert closure.names == set(local_store(repository.root, "unused").names())
    assert {named.kind for named in found} >= {"commit", "token-tree", "inner", "tokens", "spans", "gists", "dead", "documents"}
    assert list(closure.of(heads)) == []


def test_each_object_comes_after_one_that_names_it(repository: Repository) -> None:
    seen: set[str] = set()
    store = local_store(repository.root, "unused")
    head = repository.resolve("other")
    for named in Closure(reader(repository)).of([head]):
        raw = bytes.fromhex(named.name)
        assert named.name == head or any(raw in store.get(other) or named.name.encode() in store.get(other) for other in seen)
        seen.add(named.name)


def test_without_history_parents_are_left_out_and_all_content_is_in(repository: Repository, tmp_path: Path) -> None:
    head = repository.resolve("other")
    commits = [named for named in Closure(reader(repository), history=False).of([head]) if named.kind == "commit"]
    assert commits == [Named(head, "commit")]


def test_an_original_with_the_bytes_of_a_commit_hides_nothing(repository: Repository) -> None:
    """The name is reached twice, as two kinds; in either order all that the commit names is in."""
    commit = repository.resolve("v1")
    closure = Closure(reader(repository))
    as_original = list(closure.below([Named(commit, "original")]))
    assert [named.name for named in as_original] == [commit]
    assert len(list(closure.of([commit]))) > 50


def test_segments_and_originals_are_not_read(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = reader(repository)
    opened: list[str] = []
    real = type(quiet.store).view
    monkeypatch.setattr(type(quiet.store), "view", lambda store, name: opened.append(name) or real(store, name))
    found = list(Closure(quiet).of([repository.resolve("main")]))
    assert set(opened) == {named.name for named in found if named.kind == "inner"}


def test_damage_and_what_is_not_known_are_told(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    store = local_store(repository.root, "test")
    commit = repository.commit()
    lost = store.put(canonical({**_json(commit), "tokens": "0" * 64}))
    outside = store.put(canonical({**_json(commit), "tokens": "/dev/zero"}))
    later = store.put(canonical({**_json(commit), "attachments": "0" * 64}))
    odd = store.put(canonical({**_json(commit), "layers": 7}))
    store.sync()
    with pytest.raises(MissingObject, match="000"):
        list(Closure(reader(repository)).of([lost]))
    for name, words in ((outside, "not the name"), (later, "upgrade"), (odd, "well formed")):
        with pytest.raises(CorruptObject, match=words):
            list(Closure(reader(repository)).of([name]))


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 7},
        {"tokens": ["a"]},
        {"documents": None},
        {"layers": 7},
        {"layers": {"g": "/dev/zero"}},
        {"parents": 7},
        {"dead": "x"},
    ],
)
def test_a_commit_that_somebody_made_up_is_damage_when_it_is_read(tmp_path: Path, change: dict[str, object]) -> None:
    repository = create(tmp_path / "m")
    store = local_store(repository.root, "test")
    name = store.put(canonical({**_json(repository.commit()), **change}))
    store.sync()
    with pytest.raises(CorruptObject):
        repository.snapshot(name)


def test_every_field_of_a_commit_is_accounted_for() -> None:
    assert set(Commit.__dataclass_fields__) | {"kind"} == COMMIT_FIELDS


def _json(commit: Commit) -> dict[str, object]:
    import json

    return dict(json.loads(commit.to_bytes()))
