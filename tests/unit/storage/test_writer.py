from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_driver import OTHER, SPEC, Gister, add, check_layer, create, ids_of, roots, say

from megacontext.errors import BranchLocked, InvalidInput, UnknownReference
from megacontext.storage import Repository

documents = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 32)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=20)
@given(documents, st.integers(1, 20), st.sets(st.integers(0, 3)), st.integers(0, 70), st.booleans())
def test_append_in_pieces_equals_append_at_once(
    tmp_path_factory: pytest.TempPathFactory,
    layout: list[tuple[int, int]],
    cut: int,
    commits: set[int],
    chat: int,
    reopen: bool,
) -> None:
    """The same roots, gists included, whatever the appends, the commits and the writers in between."""
    path = tmp_path_factory.mktemp("pieces")
    tokens = np.arange(chat, dtype=np.uint32)
    whole, pieces = create(path / "whole"), create(path / "pieces")
    gister = Gister()
    with whole.writer(layer=SPEC) as writer:
        for number, (blocks, last) in enumerate(layout):
            add(writer, f"d{number}", blocks, gister, last=last)
        writer.begin_document(source="chat", open=True, ingested_at=3.0)
        say(writer, tokens, gister)
        writer.commit()
    gister = Gister()
    writer = pieces.writer(layer=SPEC)
    for number, (blocks, last) in enumerate(layout):
        add(writer, f"d{number}", blocks, gister, cut=cut, last=last)
        if number in commits:
            writer.commit()
        if reopen:
            writer.close()
            writer = pieces.writer(layer=SPEC)
    writer.begin_document(source="chat", open=True, ingested_at=3.0)
    for at in range(0, chat, cut):
        say(writer, tokens[at : at + cut], gister)
    with writer:
        writer.commit()
    assert roots(whole) == roots(pieces)
    check_layer(pieces.snapshot(), gister)
    assert pieces.fsck().clean


def test_the_same_operations_give_the_same_commit(tmp_path: Path) -> None:
    names = set()
    for name in ("a", "b"):
        repository = create(tmp_path / name)
        with repository.writer() as writer:
            add(writer, "x", 40)
            names.add(writer.commit("same", "author", time=5.0))
    assert len(names) == 1


def test_the_token_root_depends_on_the_tokens_only(tmp_path: Path) -> None:
    tokens = set()
    for name, layer in (("a", None), ("b", SPEC)):
        repository = create(tmp_path / name)
        with repository.writer(layer=layer) as writer:
            add(writer, "x", 40, Gister() if layer else None)
            writer.commit(name, name)
        tokens.add(repository.commit().tokens)
    assert len(tokens) == 1


def test_an_unfinished_document_is_invisible_until_it_ends(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    with repository.writer() as writer:
        add(writer, "a", 2)
        writer.begin_document(source="b", text_hash="h")
        writer.append_blocks(ids_of("b", 5))
        writer.sync()
        for snapshot in (repository.snapshot(), writer.snapshot()):
            assert (snapshot.blocks, len(snapshot.documents)) == (2, 1)
        writer.end_document()
        assert (repository.snapshot().blocks, len(repository.snapshot().documents)) == (7, 2)


@pytest.mark.parametrize("commit_between", [False, True])
@pytest.mark.parametrize("layer", [None, SPEC])
def test_an_unfinished_document_is_resumed(tmp_path: Path, commit_between: bool, layer: object) -> None:
    """Also when a commit of what came before carried it over."""
    repository = create(tmp_path / "m")
    gister = Gister() if layer else None
    ids = ids_of("b", 70)
    with repository.writer(layer=SPEC if layer else None) as writer:
        add(writer, "a", 2, gister)
        writer.begin_document(source="b", text_hash="h", ingested_at=1.0)
        writer.append_blocks(ids[:50], gists=gister.add(ids[:50]) if gister else None)
        if commit_between:
            writer.commit()
        writer.append_blocks(ids[50:60], gists=gister.add(ids[50:60]) if gister else None)
    with repository.writer(layer=SPEC if layer else None) as writer:
        with pytest.raises(InvalidInput, match="begin it again to resume"):
            writer.append_blocks(ids[60:])
        assert writer.begin_document(source="b", text_hash="h").blocks == 60
        writer.append_blocks(ids[60:], gists=gister.add(ids[60:]) if gister else None)
        writer.end_document()
        writer.commit()
    snapshot = repository.snapshot()
    np.testing.assert_array_equal(snapshot.tokens(2, 72), ids)
    assert [(each.source, each.blocks) for each in snapshot.documents] == [("a", 2), ("b", 70)]
    if gister:
        check_layer(snapshot, gister)
    assert repository.fsck().clean


@pytest.mark.parametrize("again", [{"source": "b", "text_hash": "changed"}, {"source": "c", "text_hash": "h"}])
def test_another_document_drops_the_unfinished_one(tmp_path: Path, again: dict[str, str]) -> None:
    repository = create(tmp_path / "m")
    with repository.writer() as writer:
        writer.begin_document(source="b", text_hash="h")
        writer.append_blocks(ids_of("b", 3))
    with repository.writer() as writer:
        assert writer.begin_document(**again).blocks == 0
        writer.append_blocks(ids_of("new", 1))
        writer.end_document()
    snapshot = repository.snapshot()
    np.testing.assert_array_equal(snapshot.tokens(0, snapshot.blocks), ids_of("new", 1))


def test_a_conversation_grows_token_by_token(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    gister, tokens = Gister(), np.arange(200, dtype=np.uint32)
    with repository.writer(layer=SPEC) as writer:
        writer.begin_document(source="chat", open=True)
        for at in range(0, 150, 5):
            say(writer, tokens[at : at + 5], gister)
            if at == 50:
                writer.commit("a turn")
            snapshot = repository.snapshot()
            assert snapshot.cursor == at + 5
            seen = np.concatenate((snapshot.tokens(0, snapshot.blocks).ravel(), snapshot.open_ids))
            np.testing.assert_array_equal(seen, tokens[: at + 5])
            assert snapshot.documents[0].tokens == at + 5
    with repository.writer(layer=SPEC) as writer:
        resumed = writer.begin_document(source="chat", open=True)
        assert (resumed.blocks, resumed.tokens, resumed.open_ids.tolist()) == (4, 150, list(range(128, 150)))
        say(writer, tokens[150:], gister)
        last = np.concatenate((tokens[192:], np.full(24, 9))).astype(np.uint32)[None]
        record = writer.end_document(pad=9, gists=gister.add(last), text_hash="h", chars=7, lines=2)
        assert (record.blocks, record.tokens, record.open, record.text_hash) == (7, 200, False, "h")
    snapshot = repository.snapshot()
    assert snapshot.fill(0, 7).tolist() == [32] * 6 + [8]
    np.testing.assert_array_equal(snapshot.tokens(6, 7), last)
    check_layer(snapshot, gister)


def test_an_open_document_left_behind_can_be_ended_but_not_passed_over(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    with repository.writer() as writer:
        writer.begin_document(source="chat", open=True)
        say(writer, np.arange(5))
    with repository.writer() as writer:
        assert writer.document is not None and writer.document.source == "chat"
        with pytest.raises(InvalidInput, match="chat is still open"):
            writer.begin_document(source="file")
        with pytest.raises(InvalidInput, match="no unfinished document"):
            writer.abort_document()
        writer.end_document()
        add(writer, "file", 1)
    assert [each.source for each in repository.snapshot().documents] == ["chat", "file"]


def test_abort_leaves_no_trace(tmp_path: Path) -> None:
    repository, same = create(tmp_path / "m"), create(tmp_path / "same")
    gister = Gister()
    with repository.writer(layer=SPEC) as writer, same.writer(layer=SPEC) as other:
        add(writer, "a", 3, gister)
        add(other, "a", 3, Gister())
        scratch = gister.copy()
        writer.begin_document(source="b")
        writer.append_blocks(ids_of("b", 40), gists=scratch.add(ids_of("b", 40)))
        writer.abort_document()
        twin = gister.copy()
        add(writer, "c", 40, gister)
        add(other, "c", 40, twin)
        writer.commit()
        other.commit()
    assert roots(repository) == roots(same)


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    ids = ids_of("x", 2)
    gists = np.zeros((2, 1, 4), np.float16)
    with repository.writer(layer=SPEC) as writer:
        for call in (writer.end_document, writer.abort_document, lambda: writer.append_blocks(ids)):
            with pytest.raises(InvalidInput):
                call()
        writer.begin_document(source="x")
        before = (tmp_path / "m/journal/main.wal").read_bytes()
        bad = [
            ({"ids": ids[0]}, "blocks are"),
            ({"ids": ids}, "level 1 needs gists"),
            ({"ids": ids, "gists": {1: (1, gists)}}, "nodes 0:2"),
            ({"ids": ids, "gists": {1: (0, gists[:1])}}, "level 1"),
            ({"ids": ids, "gists": {1: (0, gists.astype(np.float32))}}, "float16"),
            ({"ids": ids, "gists": {1: (0, gists), 2: (0, gists)}}, "level 2"),
            ({"ids": ids, "gists": {1: (0, gists * np.float16(np.nan))}}, "NaN"),
            ({"ids": ids, "fill": np.array([5, 32])}, "only a document's last"),
            ({"ids": ids, "fill": np.array([32, 0])}, "fill gives"),
            ({"ids": ids, "fill": np.array([32])}, "fill gives"),
            ({"ids": ids.astype(np.int64) - 60_000}, "token ids"),
            ({"ids": ids.astype(np.float64)}, "token ids"),
            ({"ids": ids, "gists": {1: (0, gists)}, "chars": [1]}, "chars gives"),
            ({"ids": ids, "gists": {1: (0, gists)}, "lines": [1, -2]}, "lines gives"),
        ]
        for arguments, message in bad:
            with pytest.raises(InvalidInput, match=message):
                writer.append_blocks(**arguments)
        with pytest.raises(InvalidInput, match="append_blocks"):
            writer.append_tokens(ids[0])
        with pytest.raises(InvalidInput, match="still being written"):
            writer.begin_document(source="y")
        assert (tmp_path / "m/journal/main.wal").read_bytes() == before
        writer.append_blocks(ids, np.array([32, 7]), gists={1: (0, gists)})
        with pytest.raises(InvalidInput, match="only a document's last"):
            writer.append_blocks(ids, gists={1: (2, gists)})
    with repository.writer() as writer, pytest.raises(InvalidInput, match="takes no gists"):
        writer.begin_document(source="z")
        writer.append_blocks(ids, gists={1: (0, gists)})


def test_documents_carry_their_provenance(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    with repository.writer() as writer:
        for number in range(70):
            add(writer, f"d{number}", 1 + number % 3)
        writer.begin_document(source="d0", version=2, labels=("secret",), media_type="text/markdown", ingested_at=9.0)
        writer.append_blocks(ids_of("n", 1))
        writer.end_document(original=b"\xff\xfe raw", text_hash="t")
        writer.begin_document(source="empty")
        writer.end_document()
        writer.commit()
    snapshot = repository.snapshot()
    assert [each.ordinal for each in snapshot.documents] == list(range(72))
    first, second = snapshot.documents.find("d0")
    assert (first.version, second.version, second.labels, second.media_type) == (1, 2, ("secret",), "text/markdown")
    assert repository.read_object(second.original) == b"\xff\xfe raw"
    for record in snapshot.documents:
        for block in range(record.start_block, record.start_block + record.blocks):
            assert snapshot.document_of(block) == record
    chars, lines = snapshot.spans_at(np.array([1, 2, second.start_block]))
    assert chars.tolist() == [100, 200, -1] and lines.tolist() == [1, 2, -1]
    with pytest.raises(UnknownReference):
        _ = snapshot.documents[72]


def hold(path: str, ready: object, done: object) -> None:
    with Repository.open(path).writer():
        ready.set()  # type: ignore[attr-defined]
        done.wait()  # type: ignore[attr-defined]


def test_a_branch_has_one_writer(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    repository.create_branch("other")
    with repository.writer("main"), repository.writer("other"):
        with pytest.raises(BranchLocked, match=r"branch 'main' .* process \d+"):
            repository.writer("main")
        with pytest.raises(InvalidInput, match="current branch"):
            repository.delete_branch("main")
        with pytest.raises(BranchLocked):
            repository.delete_branch("other")
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(str(tmp_path / "m"), ready, done))
    process.start()
    assert ready.wait(60)
    with pytest.raises(BranchLocked, match=f"process {process.pid}"):
        repository.writer()
    process.kill()
    process.join()
    repository.writer().close()


def test_a_writer_without_the_layer_lets_it_lag(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    gister = Gister()
    with repository.writer(layer=SPEC) as writer:
        add(writer, "a", 40, gister)
        writer.commit()
    with repository.writer() as writer:
        add(writer, "b", 40)
        writer.commit()
    snapshot = repository.snapshot()
    assert (snapshot.blocks, dict(snapshot.layers)) == (80, {SPEC.fingerprint: 40})
    check_layer(snapshot, gister)
    for spec in (SPEC, OTHER):
        with pytest.raises(InvalidInput, match="add_layer"):
            repository.writer(layer=spec)
    repository.writer().close()


def test_a_crash_under_another_layer_keeps_what_was_finished(tmp_path: Path) -> None:
    repository = create(tmp_path / "m")
    gister = Gister()
    with repository.writer(layer=SPEC) as writer:
        add(writer, "a", 40, gister)
        writer.begin_document(source="b", text_hash="h")
        writer.append_blocks(ids_of("b", 1), gists=gister.copy().add(ids_of("b", 1)))
    with pytest.raises(InvalidInput, match="add_layer"):
        repository.writer(layer=OTHER)
    with repository.writer() as writer:
        assert writer.begin_document(source="b", text_hash="h").blocks == 0
        writer.append_blocks(ids_of("b", 1))
        writer.end_document()
    snapshot = repository.snapshot()
    assert snapshot.blocks == 41 and snapshot.layers == {SPEC.fingerprint: 40}
    check_layer(snapshot, gister)
