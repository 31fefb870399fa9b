"""Repack: what lives is unchanged but for its place, and everything made of it is what a fresh memory would hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dead_documents import BASE, NET, drop, gists_are_of_live_children, text

from megacontext.engine.bundle import load_bundle
from megacontext.engine.gist_builder import GistBuilder
from megacontext.engine.ingest import IngestConfig, Receipt, ingest
from megacontext.engine.memory import Memory
from megacontext.engine.repack import repack
from megacontext.engine.sources import Source
from megacontext.engine.tokenizer_files import tokenizer_files
from megacontext.errors import UnknownReference
from megacontext.storage import Repository, Snapshot, audit

KEEP = IngestConfig(batch_blocks=9, repack=False)
SPEC = GistBuilder(BASE, NET).spec


def add(repository: Repository, uri: str, content: str, config: IngestConfig = KEEP, branch: str | None = None) -> Receipt:
    source = Source(uri=uri, text=content, media_type="text/plain", tags=("t", uri[-1]))
    return ingest(repository, BASE, NET, [source], config=config, branch=branch)


def create(path: Path) -> Repository:
    return Repository.create(path, segment_blocks=32)


def living(snapshot: Snapshot) -> dict[str, tuple[object, ...]]:
    """Everything that people see of each live document."""
    seen: dict[str, tuple[object, ...]] = {}
    for record in snapshot.documents.live():
        blocks = np.arange(*record.span)
        parts = [snapshot.tokens_at(blocks), snapshot.fill_at(blocks), *snapshot.spans_at(blocks), snapshot.gists_at(1, blocks)]
        assert (snapshot.documents_at(blocks) == record.ordinal).all()
        facts = (record.ordinal, record.version, record.tags, record.tokens, record.chars, record.lines, record.text_hash)
        seen[record.source] = (*facts, *(part.tobytes() for part in parts))
    return seen


def whole(snapshot: Snapshot) -> list[bytes]:
    """All gists of all levels."""
    layer, lod, found = snapshot.layer(SPEC.fingerprint), 1, []
    while layer.count(lod):
        found.append(layer.gists(lod, 0, layer.count(lod)).tobytes())
        lod += 1
    return found


STEPS = st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(1, 500))), min_size=1, max_size=7)


@settings(max_examples=5, deadline=None)
@given(steps=STEPS, everything=st.booleans(), talk=st.integers(0, 70))
def test_repacking_keeps_what_lives(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int | None]], everything: bool, talk: int
) -> None:
    path = tmp_path_factory.mktemp("m")
    repository = create(path / "m.mc")
    model = {"text:first": text(9, 150)}
    add(repository, "text:first", model["text:first"])
    for number, (name, words) in enumerate(steps):
        uri = f"text:{name}"
        if words is not None:
            model[uri] = text(number, words)
            add(repository, uri, model[uri])
        elif uri in model:
            del model[uri]
            drop(repository, uri)
    if talk:
        with repository.writer(layer=SPEC) as writer:
            writer.begin_document(source="session:s", open=True)
            ids = np.arange(talk, dtype=np.uint32)
            blocks = ids[: talk // 32 * 32].reshape(-1, 32)
            gists = GistBuilder(BASE, NET).extend(writer.written_layer(), blocks, timeline=writer.snapshot().timeline())
            writer.append_tokens(ids, gists=gists)
            writer.commit("Said")
    before, seen = repository.snapshot(), living(repository.snapshot())
    plan = repack(repository, BASE, NET, everything=everything, dry_run=True)
    done = repack(repository, BASE, NET, everything=everything)
    after = repository.snapshot()
    assert (plan.first, plan.freed, plan.moved) == (done.first, done.freed, done.moved) and after.blocks == done.blocks
    assert living(after) == seen and after.open_ids.tobytes() == before.open_ids.tobytes()
    assert living(repository.snapshot(before.commit_name)) == seen
    assert (
        after.blocks - after.timeline().live_blocks == done.dead == before.blocks - before.timeline().live_blocks - done.freed
    )
    assert [record.ordinal for record in after.documents] == list(range(len(before.documents)))
    assert not after.stale_layers and after.layers == ({SPEC.fingerprint: after.blocks} if after.layers else {})
    if after.blocks:
        gists_are_of_live_children(after, NET)
    assert repository.fsck().clean, repository.fsck().findings
    assert repack(repository, BASE, NET, everything=everything).commit == done.commit
    if done.dead == 0:
        fresh = create(path / "fresh.mc")
        for record in after.documents.live():
            if not record.open:
                add(fresh, record.source, model[record.source])
        stop = fresh.snapshot().blocks
        np.testing.assert_array_equal(after.tokens(0, stop), fresh.snapshot().tokens(0, stop))
        if not talk:
            assert whole(after) == whole(fresh.snapshot())
    # Life goes on, resumed conversation included.
    if talk:
        with repository.writer(layer=SPEC) as writer:
            assert writer.begin_document(source="session:s", open=True).tokens == talk
            writer.end_document(gists=_ending(writer))
    add(repository, "text:a", text(77, 300))
    gists_are_of_live_children(repository.snapshot(), NET)
    assert repository.fsck().clean


def _ending(writer):  # type: ignore[no-untyped-def]
    rest = writer.open_ids
    if not len(rest):
        return None
    block, fill = np.zeros((1, 32), np.uint32), np.array([len(rest)], np.uint8)
    block[0, : len(rest)] = rest
    return GistBuilder(BASE, NET).extend(writer.written_layer(), block, fill, timeline=writer.snapshot().timeline())


@pytest.mark.parametrize("edits", [20, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["tiny_bundle", "kv_bundle"])
def test_after_many_edits_a_window_costs_and_reads_what_it_does_in_a_fresh_memory(
    tmp_path: Path, kind: str, edits: int, request: pytest.FixtureRequest
) -> None:
    bundle = load_bundle(request.getfixturevalue(kind))
    tokenizer = bundle.base.tokenizer_fingerprint
    files = tokenizer_files(bundle.tokenizer)
    edited, fresh = (
        Memory(Repository.create(tmp_path / name, tokenizer=tokenizer, tokenizer_files=files, segment_blocks=32), bundle)
        for name in ("edited", "fresh")
    )
    page = text(1, 300)
    for memory in (edited, fresh):
        memory.add(text=page, name="page")
    freed = [edited.add(text=text(2, 320 + 3 * (at % 9)) + f" {at}", name="file").repacked for at in range(edits)]
    assert sum(map(bool, freed)) >= edits // 20
    edited.repack(everything=True)
    fresh.add(text=text(2, 320 + 3 * ((edits - 1) % 9)) + f" {edits - 1}", name="file")
    sides = []
    for memory in (edited, fresh):
        with memory.session(budget=256, policy="recency") as session:
            session.append("alpha beta gamma")
            session.refocus(unlimited=True)
            window = session.window
            sides.append((window.cost, window.lod.tolist(), window.index.tolist(), session.logits().tolist()))
    assert sides[0] == sides[1]


def test_old_versions_are_read_where_they_are(memory: Memory) -> None:
    memory.add(text=text(1, 400), name="a")
    memory.add(text=text(2, 400), name="a")
    before = memory.snapshot()
    old = next(record for record in before.documents if record.source == "text:a")
    assert memory.text(old, before) == text(1, 400)
    done = memory.repack(everything=True)
    assert done.freed == old.blocks and memory.status().dead == 0
    gone = memory.snapshot().documents[old.ordinal]
    assert (gone.version, gone.blocks, gone.text_hash) == (1, 0, old.text_hash)
    with pytest.raises(UnknownReference, match="repacked"):
        memory.text(gone)
    assert memory.text(old, memory.snapshot(before.commit_name)) == text(1, 400)
    assert memory.text(memory.find_document("text:a")) == text(2, 400)
    assert memory.diff(before.commit_name).documents == ()
    assert [entry.act for entry in audit.read(memory.repository.root).entries] == ["repack"]
    hits = memory.search("alpha beta")
    assert hits and all(hit.source == "text:a" or "function" in hit.source for hit in hits)
    assert memory.repack().freed == 0


def test_a_repack_waits_until_it_pays(tmp_path: Path) -> None:
    repository = create(tmp_path / "m.mc")
    due = IngestConfig(batch_blocks=9)
    sizes = []
    for seed in range(10):
        receipt = add(repository, "text:a", text(seed, 250), due)
        sizes.append(repository.snapshot().blocks)
        assert (receipt.repacked > 0) == (sizes[-1] < (sizes[-2] if seed else 0))
        assert receipt.commit == repository.resolve()
    size = min(sizes)
    assert max(sizes) < 4 * 32 + 2 * size and sizes.count(size) >= 1


def test_labels_move_along(memory: Memory) -> None:
    for at in range(3):
        memory.add(text=text(at, 200), name="draft")
    memory.add(text=text(7, 200), name="secret", labels=["private"])
    memory.add(text=text(8, 200), name="open")
    memory.repack(everything=True)
    reader = Memory.open(memory.repository.root, deny=["private"])
    assert {record.source for record in reader.snapshot().documents.live()} == {"text:functions", "text:draft", "text:open"}
    record = memory.find_document("text:secret")
    snapshot = memory.snapshot()
    assert snapshot.labels.held(["private"]) == (record.span,)
    assert memory.text(memory.find_document("text:open")) == text(8, 200)
