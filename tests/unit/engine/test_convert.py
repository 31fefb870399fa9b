"""The same texts in a memory for another tokenizer."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from megacontext.engine.convert import differing, origin_of
from megacontext.engine.events import ConvertStarted, Event
from megacontext.engine.memory import Memory
from megacontext.errors import AccessDenied, InvalidInput, UnknownReference
from megacontext.testing.content import content_of
from megacontext.testing.killing import in_child, kill_after
from megacontext.testing.tiny_bundle import save_tiny_bundle

CODE = [f"def part_{at}(there):\n    return there * {at}\n\n" * 9 for at in range(4)]
ODD = "Grüße, 你好: <eos> is text here \ufffd\r\n\tand a tab\x0c\n"


pytestmark = pytest.mark.usefixtures("quick_disk")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with another tokenizer and key/value gists."""
    folder = tmp_path_factory.mktemp("other")
    return save_tiny_bundle(folder, "qwen3", seed=2, key_value=True, pairs=["th", "he", "re", "tu", "rn"])


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """A memory with a past: versions, a removal, labels, a branch, a conversation that still grows on a session's branch."""
    path = tmp_path_factory.mktemp("lived") / "m.mc"
    memory = Memory.create(path, model=tiny_bundle)
    memory.add(text=CODE[0], name="a", tags=["x", "y"], message="first", author="ann")
    memory.add(text=ODD, name="odd", labels=["policy"], message="second", author="bob")
    with memory.session(name="chat") as session:
        session.append("Hello there, ")
        session.commit("talk")
        session.append("are you there? Grüße " * 6)
        session.commit("more talk")
        session.append("not in a commit yet")
    memory.add(text=CODE[1], name="a", message="a changes", author="ann")
    memory.add(text=CODE[2], name="b", message="b comes")
    memory.remove("text:b", message="b goes")
    memory.add(text=CODE[3] * 5, name="c", message="c comes")
    memory.label("text:c", lines=(20, 30), add=["secret"])
    memory.label("text:odd", add=["late"], tag=["z"])
    return path


@pytest.fixture
def old(lived: Path, tmp_path: Path) -> Memory:
    return Memory.open(shutil.copytree(lived, tmp_path / "old.mc"))


def known(memory: Memory, reference: str | None = None) -> dict[str, object]:
    """All that is known of what is live, but how it is cut into tokens."""
    view = memory.snapshot(reference)
    return {
        record.source: (
            memory.text(record, view), record.version, record.media_type, set(record.tags), set(record.labels),
            record.ingested_at, record.open,
        )
        for record in view.documents.live()
    }  # fmt: skip


def test_what_is_live_comes_out_the_same(old: Memory, model: Path, tmp_path: Path) -> None:
    heard: list[Event] = []
    receipt = old.convert(tmp_path / "new.mc", model=model, author="me", listener=heard.append)
    new = Memory.open(tmp_path / "new.mc")
    assert receipt.lossless and known(new) == known(old) and len(known(old)) == 3
    assert new.repository.info.tokenizer != old.repository.info.tokenizer
    (branch,) = receipt.branches
    assert (branch.origin, branch.commit) == (old.repository.resolve(), new.repository.resolve())
    assert (branch.documents, branch.removed) == (3, 0) and not new.snapshot().timeline().dead
    assert isinstance(heard[0], ConvertStarted) and heard[0].documents == 3
    commits = [commit for _, commit in new.log()]
    assert origin_of(commits[1]) == old.repository.resolve() and commits[1].author == "me"
    assert [tag for tag in new.repository.tags() if tag.startswith("converted-from-")]
    assert new.fsck().clean and [layer.current for layer in new.layers()] == [True]
    with new.session(budget=200) as session:
        assert session.logits().isfinite().all()


def test_labels_of_lines_go_where_the_lines_are(old: Memory, model: Path, tmp_path: Path) -> None:
    old.convert(tmp_path / "new.mc", model=model)
    new = Memory.open(tmp_path / "new.mc")
    marks = new.labels_of("text:c")
    assert 0 < marks.blocks["secret"] < marks.of and marks.labels == ()
    denied = Memory.open(tmp_path / "new.mc", deny=["secret"])
    there = denied.text(denied.find_document("text:c"))
    full = new.text(new.find_document("text:c")).splitlines()
    assert not any(line in there for line in full[19:30] if full.count(line) == 1)
    reader = Memory.open(old.repository.root, deny=["secret"])
    hidden = set(range(len(full))) - {at for at, line in enumerate(full) if line in there}
    assert hidden >= {at for at, line in enumerate(full) if line not in reader.text(reader.find_document("text:c"))}
    with pytest.raises(AccessDenied):
        Memory.open(old.repository.root, deny=["secret"]).convert(tmp_path / "other.mc", model=model)


def test_history_comes_along(old: Memory, model: Path, tmp_path: Path) -> None:
    receipt = old.convert(tmp_path / "new.mc", model=model, history=True)
    new = Memory.open(tmp_path / "new.mc")
    assert receipt.lossless and known(new) == known(old)
    commits = [(name, commit) for name, commit in new.log() if (commit.message.split("\n")[0] != "Labels")]
    told = [(commit.message.split("\n")[0], commit.author) for _, commit in commits]
    assert told == [
        ("c comes", ""), ("b goes", ""), ("b comes", ""), ("a changes", "ann"), ("second", "bob"), ("first", "ann"),
        ("An empty memory", ""),
    ]  # fmt: skip
    for name, commit in commits[:-1]:
        origin = origin_of(commit)
        assert origin is not None and commit.time == old.repository.commit(origin).time
        now, then = known(new, name), known(old, origin)
        assert {source: each[0] for source, each in now.items()} == {source: each[0] for source, each in then.items()}  # type: ignore[index]
    assert new.fsck().clean


@pytest.mark.parametrize("history", [False, True])
def test_conversations_go_on(old: Memory, model: Path, tmp_path: Path, history: bool) -> None:
    """On a branch of the same name that shares what was there when it was forked; then they can grow on either side."""
    names = ["main", "sessions/chat"]
    receipt = old.convert(tmp_path / "new.mc", model=model, branches=names, history=history)
    new = Memory.open(tmp_path / "new.mc")
    assert receipt.lossless and [branch.branch for branch in receipt.branches] == names
    assert known(new, names[1]) == known(old, names[1])
    assert "not in a commit yet" in str(known(new, names[1])["session:chat"])
    with old.session(name="chat") as session:
        session.append(" and on it goes 你")
    again = old.convert(tmp_path / "new.mc", model=model, branches=names, history=history)
    assert again.lossless and known(new, names[1]) == known(old, names[1])
    assert again.branches[0].commits == 0 and again.branches[1].commits == 1
    with new.session(name="chat", budget=200) as session:
        session.append("more")
    assert str(known(new, names[1])["session:chat"]).count("你more") == 1
    assert new.fsck().clean


def test_called_again_it_brings_over_what_is_new(old: Memory, model: Path, tmp_path: Path) -> None:
    old.convert(tmp_path / "new.mc", model=model)
    new = Memory.open(tmp_path / "new.mc")
    nothing = old.convert(tmp_path / "new.mc", model=model).branches[0]
    assert (nothing.documents, nothing.commits, nothing.blocks) == (0, 0, 0)
    old.add(text="changed", name="a")
    old.remove("text:c")
    old.label("text:odd", remove=["late"])
    receipt = old.convert(tmp_path / "new.mc", model=model)
    assert receipt.lossless and known(new) == known(old)
    assert (receipt.branches[0].documents, receipt.branches[0].removed) == (1, 1)


def test_a_lost_text_is_noticed(old: Memory, model: Path, tmp_path: Path) -> None:
    old.convert(tmp_path / "new.mc", model=model)
    new = Memory.open(tmp_path / "new.mc")
    new.add(text="something of its own", name="own")
    new.add(text="something else", name="a")
    new.remove("text:odd")
    assert list(differing(old, old.snapshot(), new, new.snapshot())) == ["text:odd", "text:a", "text:own"]


def test_what_cannot_be_converted_is_refused(old: Memory, model: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="regist"):
        old.convert(tmp_path / "same.mc", model=tiny_bundle)
    with pytest.raises(UnknownReference):
        old.convert(tmp_path / "new.mc", model=model, branches=["nothing"])
    assert not (tmp_path / "same.mc").exists() and not (tmp_path / "new.mc").exists(), "nothing was begun"
    Memory.create(tmp_path / "full.mc", model=model).add(text="mine")
    with pytest.raises(InvalidInput, match="something else"):
        old.convert(tmp_path / "full.mc", model=model)


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.long)])
def test_killed_at_any_moment_it_goes_on(old: Memory, model: Path, tmp_path: Path, kills: int, history: bool) -> None:
    path, names = tmp_path / "new.mc", ["main", "sessions/chat"]
    started = time.process_time()
    old.convert(tmp_path / "whole.mc", model=model, branches=names, history=history)
    spent = time.process_time() - started
    once = Memory.open(tmp_path / "whole.mc")
    dice, ends = random.Random(5), []

    def tell(event: Event) -> None:
        if isinstance(event, ConvertStarted):
            kill_after(moment)

    for _ in range(kills):
        moment = dice.random() * spent / 2
        ends.append(in_child(lambda: old.convert(path, model=model, branches=names, history=history, listener=tell)))
        assert Memory.open(path).fsck().clean
    assert -signal.SIGPROF in ends
    assert old.convert(path, model=model, branches=names, history=history).lossless
    new = Memory.open(path)
    for name in names:
        assert known(new, name) == known(once, name)
        assert content_of(new.snapshot(name))["tokens"] == content_of(once.snapshot(name))["tokens"]
        if history:
            assert [origin_of(each) for _, each in new.log(name)] == [origin_of(each) for _, each in once.log(name)]
