"""Repack: what lives is unchanged but for its place, and everything made of it is what a fresh memory would hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dead_documents import BASE, NET, drop, gists_are_of_live_children, text

from megacontext.engine.gist_builder import GistBuilder
from megacontext.engine.ingest import IngestConfig, Receipt, ingest
from megacontext.engine.repack import repack
from megacontext.engine.sources import Source
from megacontext.storage import Repository, Snapshot

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


@settings(max_examples=8, deadline=None)
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
