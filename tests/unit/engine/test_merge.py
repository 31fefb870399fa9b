"""Merge and revert: documents of both sides, conflicts with a choice, gists as if everything had been added here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from megacontext.engine.bundle import Bundle
from megacontext.engine.gist_builder import GistBuilder
from megacontext.engine.memory import Memory
from megacontext.errors import BranchLocked, InvalidInput, MergeConflict, UnknownReference
from megacontext.storage import Repository
from megacontext.storage.erased import load_erased, save_erased


@pytest.fixture(autouse=True, scope="module")
def disk_that_need_not_be_waited_for() -> Iterator[None]:
    """A sync shows only when the power fails; here it would only take time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(os, "fdatasync", lambda descriptor: None)
        yield


def copied(source: Path, target: Path, bundle: Bundle) -> Memory:
    """A memory of a test's own."""
    shutil.copytree(source, target)
    return Memory(Repository.open(target), bundle)


def put(memory: Memory, branch: str, **texts: str) -> None:
    """Texts for documents on a branch; '' takes one out."""
    memory.checkout(branch)
    for name, text in texts.items():
        if text:
            memory.add(text=text, name=name)
        else:
            memory.remove(f"text:{name}")


def held(memory: Memory, reference: str | None = None) -> dict[str, str]:
    """By name, the texts that are there."""
    snapshot = memory.snapshot(reference)
    live = snapshot.documents.live()
    return {each.source.removeprefix("text:"): memory.text(each, snapshot) for each in live if each.source != "text:functions"}


def check_gists(memory: Memory) -> None:
    """Every gist that the layer has of a live node is the one that a rebuild of all levels makes."""
    snapshot, bundle = memory.snapshot(), memory.bundle
    assert bundle.gists is not None
    builder, timeline = GistBuilder(bundle.base, bundle.gists), snapshot.timeline()
    assert not snapshot.stale_layers
    for _, gists in builder.rebuild(snapshot):
        for lod, (start, rows) in gists.items():
            index = np.arange(start, start + len(rows))
            alive = ~timeline.dead_mask(np.full(len(rows), lod, np.int8), index)
            np.testing.assert_array_equal(snapshot.gists(lod, start, start + len(rows))[alive], rows[alive])
    assert memory.fsck().clean


@pytest.fixture(scope="module")
def forked_path(tmp_path_factory: pytest.TempPathFactory, filled: Path, loaded: Bundle) -> Path:
    memory = copied(filled, tmp_path_factory.mktemp("forked") / "m.mc", loaded)
    put(memory, "main", kept="kept by all\n", edited="first\n", gone="to be removed\n")
    memory.branch("other")
    put(memory, "other", theirs="zebra quagga\n" * 30, edited="first\nand second\n", gone="")
    put(memory, "main", ours="only here\n" * 40)
    return memory.repository.root


@pytest.fixture
def forked(tmp_path: Path, forked_path: Path, loaded: Bundle) -> Memory:
    """`main` and `other` after they parted, each with a document of its own."""
    return copied(forked_path, tmp_path / "forked.mc", loaded)


MERGED = {"kept": "kept by all\n", "edited": "first\nand second\n", "theirs": "zebra quagga\n" * 30, "ours": "only here\n" * 40}


def test_what_the_other_side_did_is_taken_over(forked: Memory) -> None:
    before, theirs = forked.repository.refs.branch("main"), forked.repository.refs.branch("other")
    merged = forked.merge("other", author="ada")
    assert (merged.added, merged.changed, merged.removed) == (("text:theirs",), ("text:edited",), ("text:gone",))
    assert held(forked) == MERGED
    commit = forked.repository.commit()
    assert commit.parents == (before, theirs) and (commit.message, commit.author) == ("Merge other", "ada")
    assert merged.commit == forked.repository.refs.branch("main") and merged.before == before
    assert [each.source for each in forked.changes()] == ["text:edited", "text:gone", "text:theirs"]
    check_gists(forked)


def test_merging_twice_changes_nothing_and_the_way_back_is_a_move(forked: Memory) -> None:
    merged = forked.merge("other")
    again = forked.merge("other")
    assert again.nothing and again.commit == merged.commit
    back = forked.merge("main", branch="other")
    assert back.fast_forward and back.commit == merged.commit and back.added == ("text:ours",)
    assert forked.repository.refs.branch("other") == merged.commit
    put(forked, "other", later="later\n")
    put(forked, "main", edited="third\n")
    forked.merge("other")
    assert held(forked) == {**MERGED, "later": "later\n", "edited": "third\n"}
    check_gists(forked)


def test_a_repack_on_both_sides_changes_no_merge(forked: Memory) -> None:
    for branch in ("main", "other"):
        put(forked, branch, **{f"again {branch}": "now\n"})
        put(forked, branch, **{f"again {branch}": "then\n"})
        before = forked.repository.refs.branch(branch)
        forked.repack(branch=branch, everything=True)
        assert forked.snapshot(branch).timeline().dead == () and forked.repository.refs.branch(branch) != before
        assert forked.diff(before, branch).documents == ()
    forked.merge("other", branch="main")
    assert held(forked, "main") == {**MERGED, "again main": "then\n", "again other": "then\n"}
    forked.checkout("main")
    check_gists(forked)


def test_records_keep_where_they_come_from(forked: Memory) -> None:
    theirs = forked.find_document("text:theirs", forked.snapshot("other"))
    forked.merge("other")
    mine = forked.find_document("text:theirs")
    for name in ("text_hash", "media_type", "ingested_at", "tags", "chars", "lines", "tokens"):
        assert getattr(mine, name) == getattr(theirs, name)
    hit = forked.search("zebra quagga")[0]
    assert hit.source == "text:theirs" and hit.line > 0


@pytest.fixture(scope="module")
def clashing_path(tmp_path_factory: pytest.TempPathFactory, filled: Path, loaded: Bundle) -> Path:
    memory = copied(filled, tmp_path_factory.mktemp("clashing") / "m.mc", loaded)
    put(memory, "main", both="start\n", mine="start\n", other="start\n", same="start\n")
    memory.branch("side")
    put(memory, "side", both="theirs\n", mine="", other="theirs\n", same="alike\n", new="their new\n", fine="fine\n")
    put(memory, "main", both="ours\n", mine="ours\n", other="", same="alike\n", new="our new\n")
    return memory.repository.root


@pytest.fixture
def clashing(tmp_path: Path, clashing_path: Path, loaded: Bundle) -> Memory:
    """`main` and `side` after they changed the same documents."""
    return copied(clashing_path, tmp_path / "clashing.mc", loaded)


def test_a_conflict_names_all_and_writes_nothing(clashing: Memory) -> None:
    before = clashing.status()
    with pytest.raises(MergeConflict, match="--both") as caught:
        clashing.merge("side")
    assert caught.value.sources == ("text:both", "text:mine", "text:new", "text:other")
    assert clashing.status() == before and held(clashing)["both"] == "ours\n"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("ours", {"both": "ours\n", "mine": "ours\n", "new": "our new\n"}),
        ("theirs", {"both": "theirs\n", "other": "theirs\n", "new": "their new\n"}),
        (
            "both",
            {
                "both": "ours\n",
                "both@side": "theirs\n",
                "mine": "ours\n",
                "other": "theirs\n",
                "new": "our new\n",
                "new@side": "their new\n",
            },
        ),
    ],
)
def test_a_choice_decides(clashing: Memory, choice: str, expected: dict[str, str]) -> None:
    merged = clashing.merge("side", choice=choice)  # type: ignore[arg-type]
    assert merged.conflicts == ("text:both", "text:mine", "text:new", "text:other")
    assert held(clashing) == {**expected, "same": "alike\n", "fine": "fine\n"}
    assert clashing.merge("side").nothing
    check_gists(clashing)


def test_both_again_supersedes_what_was_put_beside(clashing: Memory) -> None:
    clashing.merge("side", choice="both")
    put(clashing, "side", both="theirs anew\n")
    put(clashing, "main", both="ours anew\n")
    clashing.merge("side", choice="both")
    assert held(clashing)["both@side"] == "theirs anew\n" and held(clashing)["both"] == "ours anew\n"
    assert clashing.find_document("text:both@side").version == 2


def test_crosswise_merges_are_not_decided_twice(memory: Memory) -> None:
    put(memory, "main", a="start\n", b="start\n")
    memory.branch("x")
    put(memory, "x", a="x\n")
    put(memory, "main", a="main\n", b="edited\n")
    memory.branch("x-before", "x")
    memory.branch("main-before", "main")
    memory.merge("x-before", choice="ours", branch="main")
    memory.merge("main-before", choice="ours", branch="x")
    assert len(memory.repository.merge_bases(*(memory.repository.refs.branch(name) for name in ("main", "x")))) == 2
    with pytest.raises(MergeConflict) as caught:
        memory.merge("x", branch="main")
    assert caught.value.sources == ("text:a",)
    put(memory, "x", b="later\n")
    memory.merge("x", branch="main", choice="ours")
    assert held(memory, "main") == {"a": "main\n", "b": "later\n"}


def test_a_session_is_merged_like_a_branch(memory: Memory) -> None:
    def talk(text: str) -> None:
        with memory.session(name="talk", budget=400) as session:
            session.append(text)
            session.commit()

    talk("what is said in a session ends in no whole block")
    merged = memory.merge("sessions/talk")
    assert merged.added == ("session:talk",) and not merged.fast_forward
    assert held(memory)["session:talk"] == "what is said in a session ends in no whole block"
    assert memory.merge("sessions/talk").nothing
    talk(", and goes on")
    merged = memory.merge("sessions/talk")
    assert merged.changed == ("session:talk",)
    assert held(memory)["session:talk"].endswith("no whole block, and goes on")
    put(memory, "main", after="documents may follow\n")
    check_gists(memory)
    with pytest.raises(InvalidInput, match="still grows"):
        memory.merge("main", branch="sessions/talk")


def test_what_the_other_branch_only_acknowledged_comes_along_if_nobody_writes_it(memory: Memory) -> None:
    with memory.session(name="talk", budget=400) as session:
        session.append("said " * 40)
        session._writer.sync()
        assert memory.merge("sessions/talk").ahead
    merged = memory.merge("sessions/talk")
    assert merged.added == ("session:talk",) and not merged.ahead


def test_a_branch_that_is_written_cannot_be_merged_into(forked: Memory) -> None:
    with forked.repository.transaction("main"), pytest.raises(BranchLocked):
        forked.merge("other")
    with pytest.raises(UnknownReference, match="no branch"):
        forked.merge("nonsense")


def test_revert_undoes_one_commit(memory: Memory) -> None:
    put(memory, "main", a="one\n", b="one\n")
    with_c = memory.add(text="c\n", name="c").commit
    changed = memory.add(text="two\n", name="a").commit
    removed = memory.remove("text:b").commit
    put(memory, "main", d="d\n")
    assert memory.revert(changed).changed == ("text:a",)
    assert memory.revert(removed).added == ("text:b",)
    undone = memory.revert(with_c, author="ada")
    assert undone.removed == ("text:c",)
    assert held(memory) == {"a": "one\n", "b": "one\n", "d": "d\n"}
    commit = memory.repository.commit()
    assert commit.author == "ada" and commit.message.startswith(f"Revert {with_c[:12]}") and len(commit.parents) == 1
    assert memory.revert(with_c).nothing
    memory.revert(undone.commit)
    assert held(memory)["c"] == "c\n"
    check_gists(memory)


def test_revert_refuses_what_was_changed_again(memory: Memory) -> None:
    put(memory, "main", a="one\n")
    changed = memory.add(text="two\n", name="a").commit
    put(memory, "main", a="three\n")
    before = memory.status()
    with pytest.raises(MergeConflict, match="changed again") as caught:
        memory.revert(changed)
    assert caught.value.sources == ("text:a",) and memory.status() == before


def test_a_merge_can_be_reverted(forked: Memory) -> None:
    before = held(forked)
    merged = forked.merge("other")
    forked.revert(merged.commit)
    assert held(forked) == before
    check_gists(forked)


def test_the_first_commit_can_be_reverted_too(memory: Memory) -> None:
    first = [name for name, _ in memory.log()][-2]
    assert memory.revert(first).removed == ("text:functions",)
    assert memory.snapshot().timeline().live_blocks == 0
    root = [name for name, _ in memory.log()][-1]
    assert memory.revert(root).nothing


def test_a_merge_takes_labels_along_and_takes_none_off(forked: Memory) -> None:
    forked.label("text:kept", add=["secret"], branch="other")
    forked.label("text:theirs", lines=(1, 2), add=["draft"], branch="other")
    forked.label("text:ours", add=["mine"], branch="main")
    merged = forked.merge("other")
    assert set(forked.labels()) == {"secret", "draft", "mine"}
    assert forked.labels_of("text:kept").blocks == {"secret": 1}
    half = forked.labels_of("text:theirs")
    assert 0 < half.blocks["draft"] < half.of
    forked.label("text:theirs", remove=["draft"], branch="other")
    forked.label("text:kept", remove=["secret"], branch="other")
    put(forked, "other", more="more\n")
    forked.merge("other", branch="main")
    assert set(forked.labels("main")) == {"secret", "draft", "mine"}
    forked.label("text:edited", add=["late"], branch="other")
    commit = forked.repository.refs.branch("main")
    labelled = forked.merge("other", branch="main")
    assert (labelled.added, labelled.changed, labelled.removed) == ((), (), ()) and labelled.blocks == 0
    assert labelled.before == commit != labelled.commit and "late" in forked.labels("main")
    forked.checkout("main")
    forked.drop_session("other")
    denied = Memory.open(forked.repository.root, deny=["secret", "late"])
    assert {each.source for each in denied.snapshot().documents.live()} == {
        "text:functions",
        "text:theirs",
        "text:ours",
        "text:more",
    }
    assert merged.commit != labelled.commit
    check_gists(forked)


def test_what_was_erased_does_not_come_back(forked: Memory) -> None:
    removed = forked.remove("text:ours").commit
    forked.branch("ahead")
    put(forked, "ahead", far="far\n", near="near\n")
    forked.checkout("main")
    root = forked.repository.root
    save_erased(root, load_erased(root).with_erased(["text:theirs", "text:ours", "text:far"], []))
    merged = forked.merge("other")
    assert merged.refused == ("text:theirs",) and merged.changed == ("text:edited",)
    assert forked.revert(removed).refused == ("text:ours",)
    onward = forked.merge("ahead")
    assert (onward.refused, onward.added, onward.fast_forward) == (("text:far",), ("text:near",), False)
    assert held(forked).keys() == {"kept", "edited", "near"}
    put(forked, "main", fresh="fresh\n")
    forked.branch("straight")
    put(forked, "straight", late="zebra quagga\n" * 30)
    save_erased(root, load_erased(root).with_erased(["text:late"], []))
    straight = forked.merge("straight", branch="main")
    assert straight.refused == ("text:late",) and not straight.fast_forward
    assert "theirs" not in held(forked, "main")
