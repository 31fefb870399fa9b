"""Erasing: nothing of a document is left in any file, and everything else reads as before."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.engine.erase import Eraser
from megacontext.engine.gist_builder import GistBuilder
from megacontext.engine.ingest import IngestConfig, ingest
from megacontext.engine.remove import remove
from megacontext.engine.sources import Source
from megacontext.errors import BranchLocked, ConfigError, ProtectedTag, UnknownReference
from megacontext.models.gistnet import GistNet, GistNetConfig
from megacontext.storage import DocumentRecord, Repository, Snapshot, audit
from megacontext.storage.erased import load_erased
from megacontext.testing.tiny_models import WIDTH, tiny_base

BASE = tiny_base()
NET = GistNet(GistNetConfig(width=WIDTH, output_rms=BASE.embedding_rms, heads=2, layers=1))
OTHER = GistNet(GistNetConfig(width=WIDTH, output_rms=BASE.embedding_rms, heads=1, layers=1))
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


@pytest.fixture(autouse=True, scope="module")
def _no_syncs() -> Iterator[None]:
    """A sync shows only when the power fails; crashes are tested with storage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(os, "fdatasync", lambda descriptor: None)
        yield


class Decoder:
    """The base's tokenizer, called as the light one of a memory is."""

    def decode_batch(self, sequences: list[list[int]], skip_special_tokens: bool = True) -> list[str]:
        return [BASE.tokenizer.decode(each, skip_special_tokens=skip_special_tokens) for each in sequences]


def text(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words).tolist())


def add(repository: Repository, uri: str, content: str, branch: str = "main", net: GistNet | None = NET) -> None:
    source = Source(uri=uri, text=content, tags=("kept",))
    ingest(repository, BASE, net, [source], branch=branch, config=IngestConfig(batch_blocks=7))


def eraser(repository: Repository, net: GistNet | None = NET) -> Eraser:
    return Eraser(repository, Decoder, lambda: (BASE, net))


def created(path: Path) -> Repository:
    return Repository.create(path, segment_blocks=32)


def rows(snapshot: Snapshot, record: DocumentRecord) -> list[bytes]:
    return [row.tobytes() for row in snapshot.tokens(*record.span)]


def states(repository: Repository) -> Iterator[tuple[str, int, Snapshot]]:
    """Every commit of every branch and tag along first parents, newest first."""
    for ref in (*repository.branches(), *repository.tags()):
        for number, (name, _) in enumerate(repository.history(ref)):
            yield ref, number, repository.snapshot(name)


def others(repository: Repository, gone: set[str]) -> dict[tuple[str, int, int], tuple[object, ...]]:
    """What every document that stays is in every commit."""
    return {
        (ref, number, record.ordinal): (record, rows(view, record), view.fill(*record.span).tobytes())
        for ref, number, view in states(repository)
        for record in view.documents
        if record.source not in gone | {""}
    }


def held(repository: Repository, gone: set[str]) -> tuple[set[bytes], set[bytes]]:
    """Rows of tokens and gists of blocks that only documents which go have, over all commits. What other documents say, at
    whatever place in a block, is theirs."""
    found: dict[bool, tuple[set[bytes], set[bytes]]] = {True: (set(), set()), False: (set(), set())}
    streams: set[bytes] = set()
    for _, _, view in states(repository):
        for record in view.documents:
            tokens, gists = found[record.source in gone]
            tokens.update(rows(view, record))
            if record.source not in gone:
                streams.add(b"".join(rows(view, record)))
            if view.layers and record.blocks:
                gists.update(row.tobytes() for row in view.gists(1, *record.span))
    own = {row for row in found[True][0] if not any(row in stream for stream in streams)}
    return own, found[True][1] - found[False][1]


def remains(root: Path, needles: set[bytes]) -> list[str]:
    """Files that hold any of the needles: looked for with nothing of ours."""
    return [
        path.relative_to(root).as_posix()
        for path in sorted(root.rglob("*"))
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    ]


def gists_are_fresh(snapshot: Snapshot, net: GistNet = NET) -> None:
    """Every gist of live nodes is, bit for bit, what a layer laid over the same timeline from nothing holds."""
    layer = snapshot.layer(GistBuilder(BASE, net).spec.fingerprint)
    lods: dict[int, list[np.ndarray]] = {}
    for _, gists in GistBuilder(BASE, net).rebuild(snapshot):
        for lod, (_, made) in gists.items():
            lods.setdefault(lod, []).append(made)
    for lod, parts in lods.items():
        np.testing.assert_array_equal(layer.gists(lod, 0, layer.count(lod)), np.concatenate(parts), err_msg=f"level {lod}")


Step = tuple[str, str, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "drop", "branch", "tag"]),
        st.sampled_from("abcd"),
        st.integers(1, 260),
        st.integers(0, 3),
    ),
    min_size=3,
    max_size=9,
)


@settings(max_examples=3, deadline=None)
@given(steps=STEPS, victim=st.sampled_from("abcd"))
def test_random_histories(tmp_path_factory: pytest.TempPathFactory, steps: list[Step], victim: str) -> None:
    leaves_nothing_and_changes_nothing_else(tmp_path_factory.mktemp("erase") / "m.mc", steps, victim)


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(steps=STEPS, victim=st.sampled_from("abcd"))
def test_many_random_histories(tmp_path_factory: pytest.TempPathFactory, steps: list[Step], victim: str) -> None:
    leaves_nothing_and_changes_nothing_else(tmp_path_factory.mktemp("erase") / "m.mc", steps, victim)


def leaves_nothing_and_changes_nothing_else(root: Path, steps: list[Step], victim: str) -> None:
    repository = created(root)
    add(repository, f"file:notes/{victim}.txt", text(77, 90))
    for number, (what, letter, words, where) in enumerate(steps):
        branch = sorted(repository.branches())[where % len(repository.branches())]
        uri = f"file:notes/{letter}.txt"
        live = {record.source for record in repository.snapshot(branch).documents.live()}
        if what == "add":
            add(repository, uri, text(words * 4 + where, words), branch)
        elif what == "drop" and uri in live:
            remove(repository, BASE, NET, [uri], branch=branch)
        elif what == "branch":
            repository.create_branch(f"b{number}", branch)
        elif what == "tag":
            repository.create_tag(f"t{number}", branch)
    gone = {f"file:notes/{victim}.txt"}
    tokens, gists = held(repository, gone)
    before, name = others(repository, gone), next(iter(gone)).encode()
    assert remains(root, tokens) and remains(root, {name})

    tool = eraser(repository)
    receipt = tool.erase(tool.outlook([f"{victim}.txt"]), author="me")

    again = Repository.open(root)
    assert not remains(root, tokens | gists | {name})
    assert others(again, gone) == before
    assert again.fsck().clean and not again.fsck().unreachable
    for _, _, view in states(again):
        if view.blocks:
            gists_are_fresh(view)
        assert not {record.source for record in view.documents} & gone
    assert receipt["before"]["tokens"]["found"] >= len(tokens)
    assert audit.read(root).entries[-1].details == receipt


def test_an_outlook_changes_nothing(tmp_path: Path) -> None:
    repository = created(tmp_path / "m.mc")
    add(repository, "file:a.txt", text(1, 200))
    add(repository, "file:copy.txt", text(1, 200))
    repository.create_tag("v1")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outlook = eraser(repository).outlook(["a.txt"])
    (gone,) = outlook.documents
    assert (gone.source, gone.versions, gone.whole) == ("file:a.txt", 1, True)
    assert gone.blocks == repository.snapshot().documents[0].blocks
    assert (outlook.branches, outlook.tags, outlook.protected, outlook.copies) == (("main",), ("v1",), (), ("file:copy.txt",))
    assert outlook.commits == 2
    assert json.loads(json.dumps(outlook.to_json()))["documents"][0]["source"] == "file:a.txt"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_only_the_versions_that_match_go(tmp_path: Path) -> None:
    repository = created(tmp_path / "m.mc")
    secret = text(1, 150) + " swordfish " + text(2, 40)
    add(repository, "file:a.txt", text(3, 200))
    add(repository, "file:a.txt", secret)
    add(repository, "file:a.txt", text(4, 200))
    add(repository, "file:b.txt", text(5, 100))
    before = others(repository, set())
    tool = eraser(repository)
    outlook = tool.outlook(match="/sword[a-z]+/")
    assert [(each.source, each.versions, each.whole) for each in outlook.documents] == [("file:a.txt", 1, False)]
    tool.erase(outlook)
    after = Repository.open(tmp_path / "m.mc")
    assert after.fsck().clean
    found = others(after, set())
    assert {key: value for key, value in found.items() if not value[0].removed} == {  # type: ignore[attr-defined]
        key: value
        for key, value in before.items()
        if value[0].version != 2  # type: ignore[attr-defined]
    }
    with pytest.raises(UnknownReference):
        eraser(after).outlook(match="swordfish")
    # The state whose version went has none: not the one before it again.
    second = [name for name, _ in after.history()][2]
    assert [record.source for record in after.snapshot(second).documents.live()] == []


def test_equal_blocks_of_others_stay(tmp_path: Path) -> None:
    repository = created(tmp_path / "m.mc")
    add(repository, "file:a.txt", text(1, 200))
    add(repository, "file:copy.txt", text(1, 200))
    tool = eraser(repository)
    receipt = tool.erase(tool.outlook(["a.txt"]))
    assert receipt["shared"]["tokens"] == repository.snapshot().documents[0].blocks
    assert receipt["before"]["names"]["found"] and not receipt["after"]["names"]["found"]
    copy = Repository.open(tmp_path / "m.mc").snapshot().documents[1]
    assert copy.source == "file:copy.txt"
    # Its text may still be added, under its name; the name that went may not.
    erased = load_erased(tmp_path / "m.mc")
    assert not erased.refuses(copy)
    assert "name" in erased.reason("file:a.txt", "")


def test_what_a_journal_holds_goes_too(tmp_path: Path) -> None:
    repository = created(tmp_path / "m.mc")
    add(repository, "file:b.txt", text(5, 100))
    spec = GistBuilder(BASE, NET).spec
    ids = np.arange(10, 74, dtype=np.uint32).reshape(2, 32)
    with repository.writer(layer=spec) as writer:
        builder = GistBuilder(BASE, NET)
        for source, done in (("file:done.txt", True), ("file:half.txt", False)):
            writer.begin_document(source=source, text_hash=source)
            fill = np.full(2, 32, np.uint8)
            writer.append_blocks(ids, fill, gists=builder.extend(writer.written_layer(), ids, fill))
            if done:
                writer.end_document()
    assert remains(tmp_path / "m.mc", {b"file:done.txt", b"file:half.txt"}) == ["journal/main.wal"]
    tool = eraser(repository)
    outlook = tool.outlook(["done.txt"])
    assert outlook.branches == ("main",)
    tool.erase(outlook)
    assert not remains(tmp_path / "m.mc", {b"file:done.txt", ids.tobytes()[:128]})
    assert Repository.open(tmp_path / "m.mc").fsck().clean


def test_a_conversation_goes_with_its_unfinished_block(tmp_path: Path) -> None:
    repository = created(tmp_path / "m.mc")
    add(repository, "file:b.txt", text(5, 100), net=None)
    for piece in (40, 11, 100):
        with repository.writer() as writer:
            writer.begin_document(source="session:s", open=True)
            writer.append_tokens(np.arange(1000 + piece, 1000 + 2 * piece, dtype=np.uint32))
            writer.commit("More")
    repository.create_tag("then")
    before = others(repository, {"session:s"})
    tool = eraser(repository, None)
    tool.erase(tool.outlook(["session:s"]))
    after = Repository.open(tmp_path / "m.mc")
    assert others(after, {"session:s"}) == before
    assert after.fsck().clean
    runs = {np.arange(start, start + 8, dtype=np.uint32).tobytes() for start in (1011, 1040, 1100, 1190)}
    assert not remains(tmp_path / "m.mc", runs)
    assert not after.snapshot().cursor % 32
    add(after, "file:c.txt", text(9, 50), net=None)
    assert after.fsck().clean


def test_messages_forget_the_name(tmp_path: Path) -> None:
    repository = created(tmp_path / "m.mc")
    for name in ("a.txt", "data.txt"):
        add(repository, f"file:x/{name}", text(len(name), 60))
    with repository.writer(layer=GistBuilder(BASE, NET).spec) as writer:
        writer.begin_document(source="file:y", text_hash="y")
        writer.append_blocks(
            np.ones((1, 32), np.uint32),
            gists=GistBuilder(BASE, NET).extend(writer.written_layer(), np.ones((1, 32), np.uint32)),
        )
        writer.end_document()
        writer.commit("About file:x/a.txt, a.txt and data.txt")
    tool = eraser(repository)
    assert tool.erase(tool.outlook(["x/a.txt"]))["messages"] == 1
    messages = [commit.message for _, commit in Repository.open(tmp_path / "m.mc").history()]
    assert messages[0] == "About [erased], [erased] and data.txt"


def test_layers_of_other_gistnets_go_unless_they_are_at_hand(tmp_path: Path) -> None:
    repository = created(tmp_path / "m.mc")
    add(repository, "file:a.txt", text(1, 300))
    add(repository, "file:b.txt", text(2, 300))
    other = GistBuilder(BASE, OTHER)
    with repository.add_layer(other.spec) as writer:
        for blocks, gists in other.rebuild(writer.tokens):
            writer.append(blocks, gists)
        writer.commit("A second layer")
    tool = eraser(repository)
    receipt = tool.erase(tool.outlook(["a.txt"]))
    assert receipt["dropped_layers"] == [other.spec.fingerprint]
    after = Repository.open(tmp_path / "m.mc")
    assert list(after.snapshot().layers) == [GistBuilder(BASE, NET).spec.fingerprint]
    gists_are_fresh(after.snapshot())
    # What is dead already is not in the gists above it: no GistNet is needed to keep them.
    remove(after, BASE, NET, ["b.txt"])
    add(after, "file:c.txt", text(3, 300))


def test_protected_tags_stand_in_the_way(tmp_path: Path) -> None:
    repository = created(tmp_path / "m.mc")
    add(repository, "file:b.txt", text(2, 50))
    repository.create_tag("before")
    repository.refs.protect("before")
    add(repository, "file:a.txt", text(1, 50))
    repository.create_tag("release")
    assert repository.refs.protect("release") and not repository.refs.protect("release")
    with pytest.raises(ProtectedTag) as deleted:
        repository.delete_tag("release")
    assert deleted.value.tags == ("release",)
    tool = eraser(repository)
    outlook = tool.outlook(["a.txt"])
    assert outlook.protected == ("release",)
    state = repository.resolve("release")
    with pytest.raises(ProtectedTag, match="release"):
        tool.erase(outlook)
    assert repository.resolve("release") == state
    tool.erase(outlook, include_protected=True)
    assert repository.resolve("release") != state
    assert repository.refs.protected("tags", "release")


def test_nothing_is_erased_while_a_branch_is_written(tmp_path: Path) -> None:
    repository = created(tmp_path / "m.mc")
    add(repository, "file:a.txt", text(1, 50))
    repository.create_branch("other")
    tool = eraser(repository)
    outlook = tool.outlook(["a.txt"])
    state = repository.resolve("main")
    with repository.writer("other"), pytest.raises(BranchLocked, match="other"):
        tool.erase(outlook)
    assert repository.resolve("main") == state
    tool.erase(outlook)


def test_what_names_no_document_is_refused(tmp_path: Path) -> None:
    repository = created(tmp_path / "m.mc")
    add(repository, "file:a.txt", text(1, 50))
    tool = eraser(repository)
    for documents, match, error in (
        ([], None, ConfigError),
        (["b.txt"], None, UnknownReference),
        ([], "no such words", UnknownReference),
        ([], "/(/", ConfigError),
        ([], "", ConfigError),
    ):
        with pytest.raises(error):
            tool.outlook(documents, match=match)


def test_what_was_erased_is_skipped_by_add(tmp_path: Path) -> None:
    repository = created(tmp_path / "m.mc")
    add(repository, "file:a.txt", text(1, 60))
    tool = eraser(repository)
    tool.erase(tool.outlook(["a.txt"]))
    renamed = [Source(uri="file:b.txt", text=text(1, 60)), Source(uri="file:a.txt", text=text(2, 60))]
    receipt = ingest(repository, BASE, NET, renamed)
    assert [each.uri for each in receipt.skipped] == ["file:b.txt", "file:a.txt"]
    assert "text" in receipt.skipped[0].reason and "--allow-erased" in receipt.skipped[1].reason
    again = ingest(repository, BASE, NET, renamed, allow_erased=True, author="me")
    assert again.added == ("file:b.txt", "file:a.txt")
    assert [entry.act for entry in audit.read(tmp_path / "m.mc").entries] == ["erase", "readmit", "readmit"]
    assert not ingest(repository, BASE, NET, renamed).skipped
