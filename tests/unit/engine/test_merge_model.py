"""Merges of random edit histories on two branches, against dictionaries."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from megacontext.engine.bundle import Bundle
from megacontext.engine.memory import Memory
from megacontext.errors import MergeConflict
from megacontext.storage import Repository

Model = dict[str, str]
NAMES = "abcde"
# Texts of one to three blocks; the same text may come in on both sides.
TEXTS = {"x": "x = 1\n", "y": "def y(a, b):\n    return a\n" * 4, "z": "z " * 60}

EDITS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(NAMES), st.sampled_from(["", *TEXTS])), max_size=9)
CHOICES = st.sampled_from([None, "ours", "theirs", "both"])


@pytest.fixture(autouse=True, scope="module")
def disk_that_need_not_be_waited_for() -> object:
    """A sync shows only when the power fails; here it would only take time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(os, "fdatasync", lambda descriptor: None)
        yield


class Side:
    """A branch, and what it should hold: by name, a text and by whom it was last changed, a tick."""

    def __init__(self, memory: Memory, branch: str, model: Model) -> None:
        self.memory, self.branch, self.model = memory, branch, dict(model)

    def edit(self, name: str, text: str) -> None:
        self.memory.checkout(self.branch)
        if text and self.model.get(name) != TEXTS[text]:
            self.memory.add(text=TEXTS[text], name=name)
            self.model[name] = TEXTS[text]
        elif not text and name in self.model:
            self.memory.remove(f"text:{name}")
            del self.model[name]

    def held(self) -> Model:
        snapshot = self.memory.snapshot(self.branch)
        return {each.source.removeprefix("text:"): self.memory.text(each, snapshot) for each in snapshot.documents.live()}


def three_way(base: Model, ours: Model, theirs: Model, choice: str | None, branch: str) -> Model | None:
    """What a merge should give; None for a conflict."""
    merged = dict(ours)
    for name in sorted(base.keys() | ours.keys() | theirs.keys()):
        b, o, t = base.get(name), ours.get(name), theirs.get(name)
        if t in (b, o):
            continue
        taken = t
        if o != b:
            if choice is None:
                return None
            taken = o if choice == "ours" else t
            if choice == "both" and o is not None:
                if t is not None:
                    merged[f"{name}@{branch}"] = t
                continue
        if taken is None:
            merged.pop(name, None)
        else:
            merged[name] = taken
    return merged


COMMON = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(list(TEXTS))), max_size=4)


@settings(max_examples=5)
@given(common=COMMON, data=st.data())
def test_merges_do_what_dictionaries_do(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_bundle: Path,
    loaded: Bundle,
    common: list[tuple[str, str]],
    data: st.DataObject,
) -> None:
    play(tmp_path_factory.mktemp("merge"), tiny_bundle, loaded, common, data)


@pytest.mark.long
@settings(max_examples=60)
@given(common=COMMON, data=st.data())
def test_more_merges_do_what_dictionaries_do(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_bundle: Path,
    loaded: Bundle,
    common: list[tuple[str, str]],
    data: st.DataObject,
) -> None:
    play(tmp_path_factory.mktemp("merge"), tiny_bundle, loaded, common, data)


def play(path: Path, bundle: Path, loaded: Bundle, common: list[tuple[str, str]], data: st.DataObject) -> None:
    """Three rounds of edits on both branches, each with a merge of one into the other."""
    Memory.create(path / "m.mc", model=bundle)
    memory = Memory(Repository.open(path / "m.mc"), loaded)
    ours = Side(memory, "main", {})
    for name, text in common:
        ours.edit(name, text)
    memory.branch("other")
    theirs = Side(memory, "other", ours.model)
    base = dict(ours.model)
    for _ in range(3):
        for side, name, text in data.draw(EDITS):
            (ours if side == "a" else theirs).edit(name, text)
        choice = data.draw(CHOICES)
        expected = three_way(base, ours.model, theirs.model, choice, "other")
        before = memory.snapshot("main").commit_name
        if expected is None:
            with pytest.raises(MergeConflict):
                memory.merge("other", branch="main")
            event("conflict")
            assert memory.snapshot("main").commit_name == before and ours.held() == ours.model
            continue
        memory.merge("other", branch="main", choice=choice)  # type: ignore[arg-type]
        ours.model, base = expected, dict(theirs.model)
        assert ours.held() == expected and theirs.held() == theirs.model
        assert memory.merge("other", branch="main").nothing
    assert memory.fsck().clean
    shutil.rmtree(path)
