"""Whoever is denied a label reads nothing of what carries it, by any call and at any commit; and all the rest as before."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_driver import SPEC, Gister, create, say

from megacontext.core import WorkingContext
from megacontext.errors import AccessDenied, MissingObject, UnknownReference
from megacontext.storage import BranchWriter, DocumentRecord, Repository, Snapshot

CANARY = 60_000
"""Ids from here on are those of denied blocks, and of nothing else."""

Plan = list[tuple[int, bool]]


def plant(
    writer: BranchWriter, source: str, blocks: int, denied: bool, gister: Gister | None, **options: Any
) -> DocumentRecord:
    """A document whose ids say whether it is to be denied, and which has the label then."""
    rng = np.random.default_rng([blocks, *source.encode()])
    ids = rng.integers(0, 50_000, (blocks, 32)) + (CANARY if denied else 0)
    writer.begin_document(
        source=source, text_hash=source, ingested_at=2.0, labels=("secret", "x") if denied else ("y",), **options
    )
    gists = gister.add(ids) if gister else None
    starts = np.arange(blocks)
    writer.append_blocks(ids, gists=gists, chars=starts * 100, lines=starts + 1)
    return writer.end_document(chars=blocks * 100, lines=blocks, original=b"bytes of " + source.encode())


def tried(read: Callable[[], Any], denied: bool) -> Any:
    """What a read gives; it has to raise AccessDenied just where something denied is asked for."""
    if not denied:
        return read()
    with pytest.raises(AccessDenied):
        read()
    return None


def check_reader(whole: Snapshot, shown: Snapshot, denied: np.ndarray, seed: int) -> None:
    """Every read of a denied reader: refused where it touches `denied` bool [blocks], else as the whole snapshot's."""
    rng = np.random.default_rng(seed)
    blocks = shown.blocks
    assert blocks == whole.blocks == len(denied)
    everything = np.arange(blocks)
    for start, stop in np.sort(rng.integers(0, blocks + 1, (12, 2)), axis=1).tolist():
        bad = bool(denied[start:stop].any())
        index = rng.permutation(everything[start:stop])
        for name in ("tokens", "fill"):
            got = tried(lambda name=name, a=start, b=stop: getattr(shown, name)(a, b), bad)
            assert got is None or np.array_equal(got, getattr(whole, name)(start, stop))
        for name in ("tokens_at", "fill_at", "documents_at", "spans_at"):
            got = tried(lambda name=name, at=index: getattr(shown, name)(at), bad)
            assert got is None or np.array_equal(got, getattr(whole, name)(index))
        ids, fill = shown.shown(start, stop)
        assert np.array_equal(ids, np.where(denied[start:stop, None], 0, whole.tokens(start, stop)))
        assert np.array_equal(fill, np.where(denied[start:stop], 0, whole.fill(start, stop)))
    for block in everything.tolist():
        tried(lambda at=block: shown.document_of(at), bool(denied[block]))
    for layer in shown.layers:
        span, lod = 1, 1
        while count := shown.layer(layer).count(lod):
            bad_nodes = denied[: count * span].reshape(count, span).any(axis=1)
            for node in range(count):
                for read in (shown.gists, shown.layer(layer).gists):
                    got = tried(lambda read=read, lod=lod, at=node: read(lod, at, at + 1), bool(bad_nodes[node]))
                    assert got is None or np.array_equal(got, whole.gists(lod, node, node + 1))
            good = np.flatnonzero(~bad_nodes)
            assert np.array_equal(shown.gists_at(lod, good), whole.gists_at(lod, good))
            if bad_nodes.any():
                tried(lambda lod=lod, count=count: shown.gists_at(lod, np.arange(count)), True)
            lod, span = lod + 1, span * 32
    timeline = shown.timeline()
    assert timeline.present(0, blocks).tolist() == np.flatnonzero(~denied).tolist()
    if not timeline.tokens:
        return
    window = WorkingContext.coarsest(timeline, 10**6, 64)
    for lod in np.unique(window.lod).tolist():
        at = window.index[window.lod == lod]
        assert len(shown.gists_at(lod, at) if lod else shown.tokens_at(at)) == len(at)


def check_documents(shown: Snapshot, hidden: set[str], seen: set[str]) -> None:
    for found in (list(shown.documents), list(shown.documents.live())):
        assert {record.source for record in found} == seen
        assert not any(name in json.dumps([record.to_json() for record in found]) for name in hidden)
    for name in hidden:
        assert shown.documents.find(name) == [] and shown.documents.last_of([name]) == {}
    for ordinal in range(len(shown.documents)):
        try:
            assert shown.documents[ordinal].source in seen
        except AccessDenied:
            continue


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 70), st.booleans()), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=2),
    st.booleans(),
    st.integers(0, 99),
)
def test_nothing_denied_is_reachable_by_any_read(plan: Plan, spans: list[tuple[int, int]], committed: bool, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository, gister = create(Path(folder) / "m"), Gister()
        denied = np.zeros(0, bool)
        with repository.writer(layer=SPEC) as writer:
            records = [plant(writer, f"document-{n}", size, bad, gister) for n, (size, bad) in enumerate(plan)]
            for size, bad in plan:
                denied = np.concatenate([denied, np.full(size, bad)])
            if committed or spans:
                writer.commit("a message that quotes document-0")
        for start, length in spans:
            start, stop = (min(at, len(denied)) for at in (start, start + length))
            repository.label(lambda _, labels, a=start, b=stop: labels.add(["secret"], a, b))
            denied[start:stop] = True
        reader = Repository.open(repository.root, deny=["secret", "nothing has this"])
        shown = reader.snapshot()
        check_reader(repository.snapshot(), shown, denied, seed)
        hidden = {record.source for record in records if denied[slice(*record.span)].all()}
        check_documents(shown, hidden, {record.source for record in records} - hidden)
        for record in shown.documents:
            partly = denied[slice(*record.span)].any()
            assert (record.text_hash == "", shown.original(record) is None) == (partly, partly)
        assert not any("document-0" in commit.message for _, commit in reader.history())
        assert "document-0" not in shown.commit.message + reader.commit("main").message
        seen = {change.source for change in reader.changes(None, reader.resolve("main"))}
        assert seen == {record.source for record in reader.snapshot(reader.resolve("main")).documents}
        names = [r.snapshot().segments() for r in (repository, reader)]
        sealed = denied[: shown.sealed_blocks].reshape(-1, 32).any(axis=1)
        assert [a != b for a, b in zip(*names, strict=True)] == sealed.tolist()
        assert (shown.key == repository.snapshot().key) is False
        check_reader(repository.snapshot(), Repository.open(repository.root, deny=["z"]).snapshot(), denied & False, seed)


def two_documents(path: Path) -> tuple[Repository, str]:
    """A memory with a plain document of 40 blocks and one of 20 that is to be denied later; its commit."""
    repository, gister = create(path), Gister()
    with repository.writer(layer=SPEC) as writer:
        plant(writer, "plain", 40, False, gister)
        writer.begin_document(source="later", text_hash="later")
        ids = np.full((20, 32), CANARY)
        writer.append_blocks(ids, gists=gister.add(ids))
        writer.end_document()
        return repository, writer.commit("both")


LATER = np.arange(60) >= 40


def test_a_label_counts_for_older_commits_tags_and_other_branches(tmp_path: Path) -> None:
    repository, commit = two_documents(tmp_path / "m")
    repository.create_tag("v1")
    repository.create_branch("fork")
    with repository.writer("fork") as writer:
        writer.begin_document(source="chat", open=True)
        say(writer, np.arange(70))
        forked = writer.commit()
    reader = Repository.open(repository.root, deny=["secret"])
    assert not reader.snapshot("v1").timeline().denied
    repository.label(lambda _, labels: labels.add(["secret"], 40, 60))
    for reference in ("main", "v1", commit):
        check_reader(repository.snapshot(reference), reader.snapshot(reference), LATER, 0)
    for reference in ("fork", forked):
        assert reader.snapshot(reference).timeline().denied == ((40, 60),)
        assert reader.snapshot(reference).tokens(60, 62).ravel().tolist() == list(range(64))
        assert "later" not in {record.source for record in reader.snapshot(reference).documents}
    with reader.writer("fork", appending=True) as writer:
        tried(lambda: writer.snapshot().tokens(40, 41), True)
    repository.label(lambda _, labels: labels.remove(["secret"], 40, 60))
    for reference in ("main", "v1", "fork"):
        assert not reader.snapshot(reference).timeline().denied


def test_a_label_counts_only_for_what_is_shared(tmp_path: Path) -> None:
    repository, commit = two_documents(tmp_path / "m")
    for name, source in (("left", "of the left"), ("right", "of the right")):
        repository.create_branch(name, commit)
        with repository.writer(name) as writer:
            plant(writer, source, 50, False, None)
            writer.commit()
    repository.label(lambda _, labels: labels.add(["secret"], 50, 70), "left")
    reader = Repository.open(repository.root, deny=["secret"])
    assert reader.snapshot("left").timeline().denied == ((50, 70),)
    for reference in ("right", "main", commit):
        assert reader.snapshot(reference).timeline().denied == ((50, 60),)


def test_a_new_version_has_the_labels_of_the_old_one_and_a_tombstone_too(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    with repository.writer() as writer:
        whole = plant(writer, "whole", 3, True, None)
        part = plant(writer, "part", 4, False, None)
        gone = plant(writer, "gone", 2, True, None)
        writer.commit()
    repository.label(lambda _, labels: labels.add(["secret"], 4, 5))
    with repository.writer() as writer:
        for source, old in (("whole", whole), ("part", part)):
            writer.begin_document(source=source, text_hash="new", version=2)
            writer.append_blocks(np.full((5, 32), CANARY))
            new = writer.end_document(replaces=old)
            assert "secret" in new.labels
        assert "secret" in writer.remove_document(gone).labels
        shown = Repository.open(repository.root, deny=["secret"]).snapshot()  # of the journal, before any commit
        assert {record.source for record in shown.documents} == {"part"}
        assert [record.source for record in shown.documents.live()] == []
        writer.commit()
    reader = Repository.open(repository.root, deny=["secret"])
    denied = np.array([1, 1, 1, 0, 1, 0, 0, 1, 1] + [1] * 10, bool)
    shown = reader.snapshot()
    assert shown.allowed(0, 19) == [(3, 4), (5, 7)] and shown.allowed(7, 9) == [] and shown.allowed(5, 5) == [(5, 5)]
    assert [shown.timeline().holds_denied(0, at) for at in range(19)] == denied.tolist()
    assert {record.source for record in shown.documents} == {"part"} and not list(shown.documents.live())
    assert [change.source for change in reader.compare(reader.snapshot(reader.commit().parents[0]), shown)] == ["part"]


def test_an_open_conversation_grows_behind_its_label(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    with repository.writer() as writer:
        plant(writer, "plain", 2, False, None)
        writer.begin_document(source="chat", labels=["secret"], open=True)
        for _ in range(3):
            say(writer, np.full(45, CANARY))
            shown = Repository.open(repository.root, deny=["secret"]).snapshot()
            assert shown.timeline().present(0, shown.blocks).tolist() == [0, 1] and shown.open_ids.size == 0
            assert shown.cursor == shown.blocks * 32 and [record.source for record in shown.documents] == ["plain"]
            writer.commit()
    reader = Repository.open(repository.root, deny=["secret"])
    with pytest.raises(AccessDenied, match="conversation"):
        reader.writer(appending=True)
    repository.writer().close()  # and its lock was let go


def test_what_reads_past_the_guard_is_refused(tmp_path: Path) -> None:
    repository, commit = two_documents(tmp_path / "m")
    repository.label(lambda _, labels: labels.add(["secret"], 40, 60))
    reader = Repository.open(repository.root, deny=["secret"])
    for attempt in (
        lambda: reader.writer(),
        lambda: reader.transaction(),
        lambda: reader.add_layer(SPEC),
        lambda: reader.drop_layer(SPEC.fingerprint),
        lambda: reader.label(lambda _, labels: labels.remove(["secret"], 40, 60)),
        lambda: reader.read_object(repository.commit(commit).tokens),
        lambda: reader.fsck(),
    ):
        with pytest.raises(AccessDenied, match="without deny"):
            attempt()
    reader.create_branch("mine")
    reader.delete_branch("mine")


def test_one_memory_is_not_reached_from_another(tmp_path: Path) -> None:
    one, commit = two_documents(tmp_path / "one")
    other = create(tmp_path / "other")
    with pytest.raises(UnknownReference):
        other.snapshot(commit)
    with pytest.raises(UnknownReference):
        other.create_branch("theirs", commit)
    for name in [
        commit,
        one.commit().tokens,
        one.commit().documents,
        *one.commit().layers.values(),
        *one.snapshot().segments(),
    ]:
        with pytest.raises(MissingObject):
            other.read_object(name)
    assert other.snapshot().blocks == 0 and not list(other.snapshot().documents)
