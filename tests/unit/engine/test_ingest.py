"""Ingest: the same memory bit for bit, however sources are cut, batched or interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.engine.events import (
    BlocksIngested,
    Committed,
    DocumentFinished,
    DocumentSkipped,
    DocumentStarted,
    DocumentUnchanged,
    Event,
)
from megacontext.engine.gist_builder import GistBuilder
from megacontext.engine.ingest import IngestConfig, Receipt, ingest
from megacontext.engine.sources import Skipped, Source, find_sources
from megacontext.errors import BranchLocked, ConfigError, InvalidInput
from megacontext.models.gist_baselines import MeanPoolGist
from megacontext.models.gistnet import GistNet, GistNetConfig
from megacontext.storage import Repository
from megacontext.testing.content import content_of
from megacontext.testing.tiny_models import WIDTH, tiny_base

BASE = tiny_base()
SMALL = IngestConfig(batch_blocks=4, commit_blocks=40)


def make_net(vectors: int = 1) -> GistNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = GistNet(GistNetConfig(width=WIDTH, output_rms=BASE.embedding_rms, heads=2, layers=1, vectors=vectors))
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return net


NET = make_net()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return new_memory(tmp_path)


def new_memory(folder: Path) -> Repository:
    return Repository.create(folder / "memory", segment_blocks=32)


def prose(seed: int, characters: int) -> str:
    letters = np.random.default_rng(seed).choice(list("abcdefg \n"), characters)
    return "".join(letters.tolist())


def source(uri: str, text: str) -> Source:
    return Source(uri=uri, text=text)


def add(repository: Repository, *sources: Source | Skipped, encoder: Any = NET, **options: Any) -> Receipt:
    return ingest(repository, BASE, encoder, sources, **options)


def content(repository: Repository) -> dict[str, Any]:
    return content_of(repository.snapshot())


@settings(max_examples=8, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=3),
    batch=st.integers(1, 20),
    commit=st.integers(1, 60),
)
def test_in_pieces_equals_at_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], cuts: list[int], batch: int, commit: int
) -> None:
    sources = [source(f"text:{at}", prose(at, size)) for at, size in enumerate(sizes)]
    once, pieces = (new_memory(tmp_path_factory.mktemp("ingest")) for _ in range(2))
    add(once, *sources)
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), len(sources)], strict=True):
        add(pieces, *sources[start:stop], config=IngestConfig(batch_blocks=batch, commit_blocks=commit))
    assert content(pieces) == content(once)
    assert once.fsck().clean and pieces.fsck().clean


def test_gists_are_those_of_the_builder(repository: Repository) -> None:
    for at in range(3):
        add(repository, source(f"text:{at}", prose(at, 3000)), config=IngestConfig(batch_blocks=24))
    snapshot, builder = repository.snapshot(), GistBuilder(BASE, NET)
    ((count, expected),) = builder.rebuild(snapshot, piece=4096)
    assert count == snapshot.blocks > 250
    for lod, (start, rows) in expected.items():
        assert start == 0
        np.testing.assert_array_equal(snapshot.gists(lod, 0, len(rows)), rows)
    small = list(builder.rebuild(snapshot, piece=13))
    for lod, (_, rows) in expected.items():
        np.testing.assert_array_equal(np.concatenate([gists[lod][1] for _, gists in small if lod in gists]), rows)


def test_a_new_layer_is_laid_over_old_tokens(repository: Repository) -> None:
    add(repository, source("text:a", prose(1, 3000)), encoder=None)
    before = content(repository)
    assert not before["gists"]
    builder = GistBuilder(BASE, NET)
    with repository.add_layer(builder.spec) as writer:
        for blocks, gists in builder.rebuild(writer.tokens, piece=32):
            writer.append(blocks, gists)
            writer.commit()
    add(repository, source("text:b", prose(2, 2000)))
    other = new_memory(repository.root.parent / "other")
    add(other, source("text:a", prose(1, 3000)), source("text:b", prose(2, 2000)))
    assert content(repository) == content(other)


def test_documents_end_with_the_end_of_text_and_start_on_blocks(repository: Repository) -> None:
    text = "eins\nzwei\n\ndrei" * 9
    receipt = add(repository, source("text:a", text), source("text:b", "x" * 31), source("text:c", "x" * 32))
    snapshot = repository.snapshot()
    eos = BASE.tokenizer.eos_token_id
    assert snapshot.fill(0, snapshot.blocks).tolist() == [32, 32, 32, 32, 8, 32, 32, 1]
    assert snapshot.tokens(4, 5)[0, 7] == snapshot.tokens(5, 6)[0, 31] == snapshot.tokens(7, 8)[0, 0] == eos
    assert [d.start_block for d in snapshot.documents] == [0, 5, 6]
    first = snapshot.documents[0]
    assert (first.chars, first.lines, first.tokens, first.original) == (135, 28, 136, "")
    chars, lines = snapshot.spans_at(np.arange(5))
    assert chars.tolist() == [0, 32, 64, 96, 128] and lines.tolist() == [text.count("\n", 0, at) + 1 for at in chars.tolist()]
    assert (receipt.added, receipt.tokens, receipt.blocks) == (("text:a", "text:b", "text:c"), 136 + 32 + 33, 8)
    assert receipt.commit == repository.resolve() and receipt.seconds > 0


def test_unchanged_documents_cost_nothing_and_changed_ones_are_new_versions(repository: Repository) -> None:
    a, b = source("file:a", prose(1, 400)), source("file:b", prose(2, 400))
    add(repository, a, b)
    before = content(repository)
    again = add(repository, a, b)
    assert (again.unchanged, again.documents, again.blocks) == (("file:a", "file:b"), 0, 0)
    assert content(repository) == before and again.commit == repository.resolve()
    changed = source("file:a", prose(3, 100))
    third = add(repository, changed, b)
    assert (third.added, third.updated, third.unchanged, third.documents) == ((), ("file:a",), ("file:b",), 1)
    # Back to what it was: a version of its own, since the newest one differs.
    assert add(repository, a).updated == ("file:a",)
    documents = [(d.source, d.version) for d in repository.snapshot().documents]
    assert documents == [("file:a", 1), ("file:b", 1), ("file:a", 2), ("file:a", 3)]
    assert [c.message for _, c in repository.history()][:2] == ["Add new versions of 1", "Add new versions of 1"]


def test_skipped_sources_are_told_and_nothing_else_is_lost(repository: Repository) -> None:
    bad = Skipped(uri="file:x", reason="binary")
    receipt = add(repository, bad, source("text:a", "a"), source("text:empty", ""), source("text:half", "\ud800"))
    assert receipt.added == ("text:a",)
    assert [(s.uri, s.reason) for s in receipt.skipped] == [
        ("file:x", "binary"),
        ("text:empty", "empty"),
        ("text:half", "not text that UTF-8 can hold (character 0)"),
    ]
    assert add(repository).documents == 0


def test_events_tell_the_whole_story(repository: Repository) -> None:
    events: list[Event] = []
    add(
        repository, source("text:a", prose(1, 290)), Skipped(uri="file:x", reason="empty"), config=SMALL, listener=events.append
    )
    add(repository, source("text:a", prose(1, 290)), listener=events.append)
    # Reading runs ahead of writing by a batch, so a skipped source may be told before a document that precedes it.
    assert events.index(DocumentStarted(uri="text:a", version=1, chars=290, resumed=0)) < 2
    blocks = [event for event in events if isinstance(event, BlocksIngested)]
    assert [(b.blocks, b.tokens, b.chars_done) for b in blocks] == [(4, 128, 128), (4, 128, 256), (2, 35, 290)]
    assert DocumentFinished(uri="text:a", version=1, blocks=10, tokens=291, size=290) in events
    commits = [event for event in events if isinstance(event, Committed)]
    assert [c.blocks for c in commits] == [10, 10] and commits[0].commit == repository.resolve()
    assert events[-2] == DocumentUnchanged(uri="text:a", size=290)
    assert DocumentSkipped(uri="file:x", reason="empty") in events


def test_long_runs_commit_in_between(repository: Repository) -> None:
    sources = [source(f"text:{at}", prose(at, 600)) for at in range(6)]
    add(repository, *sources, config=SMALL, message="bulk")
    history = [(c.message, c.blocks) for _, c in repository.history()]
    assert history == [("bulk", 114), ("bulk", 57), ("An empty memory", 0)]


class Interrupted(Exception):
    pass


@settings(max_examples=6, deadline=None)
@given(stops=st.lists(st.integers(0, 30), min_size=1, max_size=4), batch=st.integers(1, 16))
def test_interrupted_runs_are_resumed(tmp_path_factory: pytest.TempPathFactory, stops: list[int], batch: int) -> None:
    sources = [source("text:a", prose(1, 700)), source("text:b", prose(2, 1200)), source("text:c", prose(3, 40))]
    config = IngestConfig(batch_blocks=batch, commit_blocks=30)
    once, broken = (new_memory(tmp_path_factory.mktemp("ingest")) for _ in range(2))
    add(once, *sources, config=config)
    for stop in stops:
        left = stop

        def stopper(event: Event) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Interrupted

        try:
            add(broken, *sources, config=config, listener=stopper)
        except Interrupted:
            continue
    add(broken, *sources, config=config)
    assert content(broken) == content(once)
    assert [(c.blocks, c.message) for _, c in broken.history()] == [(c.blocks, c.message) for _, c in once.history()]


def test_resuming_does_not_encode_again(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    text = source("text:a", prose(1, 3000))

    def stopper(event: Event) -> None:
        if isinstance(event, BlocksIngested) and event.chars_done > 2000:
            raise Interrupted

    with pytest.raises(Interrupted):
        add(repository, text, config=SMALL, listener=stopper)
    assert repository.snapshot().blocks == 0
    encoded: list[int] = []
    real = GistBuilder.encode_blocks
    monkeypatch.setattr(
        GistBuilder, "encode_blocks", lambda self, ids, fill=None: encoded.append(len(ids)) or real(self, ids, fill)
    )
    events: list[Event] = []
    receipt = add(repository, text, config=SMALL, listener=events.append)
    assert sum(encoded) == 94 - 64
    assert next(event for event in events if isinstance(event, DocumentStarted)).resumed == 64
    assert receipt.blocks == 94


def test_another_text_drops_what_was_unfinished(repository: Repository) -> None:
    def stopper(event: Event) -> None:
        if isinstance(event, BlocksIngested):
            raise Interrupted

    with pytest.raises(Interrupted):
        add(repository, source("text:a", prose(1, 3000)), config=SMALL, listener=stopper)
    add(repository, source("text:b", prose(2, 100)))
    other = new_memory(repository.root.parent / "other")
    add(other, source("text:b", prose(2, 100)))
    assert content(repository) == content(other)


def test_small_documents_are_encoded_together(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = GistBuilder.encode_blocks
    monkeypatch.setattr(
        GistBuilder, "encode_blocks", lambda self, ids, fill=None: calls.append(len(ids)) or real(self, ids, fill)
    )
    add(repository, *(source(f"text:{at}", "short") for at in range(100)))
    assert calls == [100] and len(repository.snapshot().documents) == 100


def test_without_a_gistnet_there_is_no_layer(repository: Repository) -> None:
    add(repository, source("text:a", prose(1, 3000)), encoder=None)
    assert not repository.snapshot().layers and repository.snapshot().blocks == 94
    with pytest.raises(InvalidInput, match="add_layer"):
        add(repository, source("text:b", "b"))


@pytest.mark.parametrize("encoder", [make_net(vectors=2), MeanPoolGist(WIDTH, 0.2)], ids=["two-vectors", "mean-pool"])
def test_other_encoders(repository: Repository, encoder: Any) -> None:
    add(repository, source("text:a", prose(1, 1100)), encoder=encoder, config=SMALL)
    layer = repository.snapshot().layer(encoder.fingerprint)
    assert layer.count(1) == 35 and layer.gists(2, 0, 1).shape == (1, encoder.vectors, WIDTH)


def test_what_the_tokenizer_loses_is_kept_beside(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    from megacontext.engine.text_blocks import TextCutter

    monkeypatch.setattr(TextCutter, "_decoded", lambda self, ids: "")
    add(repository, source("text:a", "naïve"))
    assert repository.snapshot().documents[0].original
    assert repository.fsck().clean


def test_a_held_branch_is_refused(repository: Repository) -> None:
    with repository.writer(), pytest.raises(BranchLocked):
        add(repository, source("text:a", "a"))


def test_folders_end_to_end(repository: Repository, tmp_path: Path) -> None:
    root = tmp_path / "src"
    (root / "pkg").mkdir(parents=True)
    (root / "pkg" / "m.py").write_text("def f():\n    return 1\n")
    (root / "binary").write_bytes(b"\0")
    receipt = add(repository, *find_sources([root], tags=["code"], around=tmp_path))
    assert receipt.added == ("file:src/pkg/m.py",) and len(receipt.skipped) == 1
    record = repository.snapshot().documents[0]
    assert (record.media_type, record.tags, record.lines) == ("text/x-python", ("code",), 2)


def test_config_is_checked() -> None:
    with pytest.raises(ConfigError):
        IngestConfig(batch_blocks=0)
