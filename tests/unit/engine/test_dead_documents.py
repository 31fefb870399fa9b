"""Superseded and removed documents: dead for readers, and for every gist above them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.core.working_context import WorkingContext
from megacontext.engine.gist_builder import GistBuilder
from megacontext.engine.ingest import IngestConfig, Receipt, ingest
from megacontext.engine.remove import Removal, remove
from megacontext.engine.sources import Source
from megacontext.errors import InvalidInput, UnknownReference
from megacontext.models.gistnet import GistEncoder, GistNet, GistNetConfig
from megacontext.storage import Repository, Snapshot
from megacontext.testing.tiny_bundle import tiny_kv_gistnet
from megacontext.testing.tiny_models import WIDTH, tiny_base

BASE = tiny_base()
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def new_net() -> GistNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return GistNet(GistNetConfig(width=WIDTH, output_rms=BASE.embedding_rms, heads=2, layers=1))


NET = new_net()


def text(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words).tolist())


def add(repository: Repository, uri: str, content: str, net: GistEncoder | None = NET) -> Receipt:
    source = Source(uri=uri, text=content, media_type="text/plain", tags=())
    return ingest(repository, BASE, net, [source], config=IngestConfig(batch_blocks=7, repack=False))


def drop(repository: Repository, uri: str, net: GistEncoder | None = NET) -> Removal:
    return remove(repository, BASE, net, [uri])


def live_texts(snapshot: Snapshot) -> dict[str, bytes]:
    """Real tokens of each live document, as readers find them in the live timeline."""
    timeline = snapshot.timeline()
    found: dict[str, bytes] = {}
    for record in snapshot.documents.live():
        assert not any(timeline.is_dead(0, block) for block in range(*record.span))
        ids, fill = snapshot.tokens(*record.span), snapshot.fill(*record.span)
        found[record.source] = ids[np.arange(32) < fill[:, None]].tobytes()
    assert timeline.live_blocks == sum(record.blocks for record in snapshot.documents.live())
    return found


def gists_are_of_live_children(snapshot: Snapshot, net: GistEncoder) -> None:
    """Every stored gist is, bit for bit, the one that a layer laid over the same timeline from nothing would hold."""
    layer, lods = snapshot.layer(), {}
    for _, gists in GistBuilder(BASE, net).rebuild(snapshot):
        for lod, (_, rows) in gists.items():
            lods.setdefault(lod, []).append(rows)
    assert lods
    for lod, parts in lods.items():
        np.testing.assert_array_equal(layer.gists(lod, 0, layer.count(lod)), np.concatenate(parts), err_msg=f"level {lod}")


STEPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(1, 420)), st.integers(0, 5)), min_size=1, max_size=6
)


@settings(max_examples=12, deadline=None)
@given(steps=STEPS)
def test_any_edits_leave_what_a_fresh_layer_would_hold(tmp_path_factory: pytest.TempPathFactory, steps: list) -> None:  # type: ignore[type-arg]
    repository = Repository.create(tmp_path_factory.mktemp("m") / "m.mc", segment_blocks=32)
    model: dict[str, str] = {}
    add(repository, "text:first", text(99, 600))
    model["text:first"] = text(99, 600)
    for name, words, seed in steps:
        uri = f"text:{name}"
        if words is not None:
            model[uri] = text(seed, words)
            add(repository, uri, model[uri])
        elif uri in model:
            del model[uri]
            drop(repository, uri)
    snapshot = Repository.open(repository.root).snapshot()
    tokenizer = BASE.tokenizer
    decoded = {
        source: tokenizer.decode(np.frombuffer(ids, np.uint32).tolist(), skip_special_tokens=True)
        for source, ids in live_texts(snapshot).items()
    }
    assert decoded == model
    gists_are_of_live_children(snapshot, NET)
    assert repository.fsck().clean


@pytest.mark.parametrize("kind", ["embedded", "keys and values"])
def test_a_thousand_edits_cost_a_window_what_the_last_version_costs(tmp_path: Path, kind: str) -> None:
    net: GistEncoder = NET if kind == "embedded" else tiny_kv_gistnet(BASE, entries=2, layers=0)
    repository = Repository.create(tmp_path / "m.mc", segment_blocks=32)
    fresh = Repository.create(tmp_path / "fresh.mc", segment_blocks=32)
    for seed in range(40):
        add(repository, "text:a", text(seed, 60), net)
    add(fresh, "text:a", text(39, 60), net)
    timeline, again = repository.snapshot().timeline(), fresh.snapshot().timeline()
    assert timeline.live_blocks == again.live_blocks < timeline.blocks / 30
    windows = [WorkingContext.coarsest(each, budget=500, recent=32) for each in (timeline, again)]
    assert windows[0].cost <= windows[1].cost + 1
    gists_are_of_live_children(repository.snapshot(), net)


def test_unchanged_blocks_keep_their_gists(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "m.mc", segment_blocks=32)
    body = text(1, 300)
    first = add(repository, "text:a", body)
    second = add(repository, "text:a", body + " " + text(2, 40))
    assert (first.reused, second.updated) == (0, ("text:a",))
    assert first.blocks - 2 <= second.reused < second.blocks
    gists_are_of_live_children(repository.snapshot(), NET)


def test_old_commits_still_show_what_was_there(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "m.mc", segment_blocks=32)
    before = add(repository, "text:a", text(1, 50)).commit
    add(repository, "text:a", text(2, 50))
    gone = drop(repository, "a")
    assert (gone.removed, gone.blocks > 0) == (("text:a",), True)
    now, then = repository.snapshot(), repository.snapshot(before)
    assert (now.timeline().live_blocks, list(now.documents.live())) == (0, [])
    assert then.timeline().live_blocks == then.blocks and [d.version for d in then.documents.live()] == [1]
    # What came back is a version of its own, and alive.
    assert add(repository, "text:a", text(1, 50)).added == ()
    assert [(d.version, d.removed) for d in repository.snapshot().documents] == [(1, False), (2, False), (3, True), (4, False)]


def test_what_names_nothing_is_refused_and_removes_nothing(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "m.mc", segment_blocks=32)
    add(repository, "file:/x/parser.py", text(1, 50))
    at = repository.resolve()
    with pytest.raises(UnknownReference, match=r"did you mean file:/x/parser\.py"):
        remove(repository, BASE, NET, ["parser.py", "parsr.py"])
    assert repository.resolve() == at and len(list(repository.snapshot().documents.live())) == 1
    record = repository.snapshot().documents[0]
    assert remove(repository, BASE, NET, ["*.py"]).removed == ("file:/x/parser.py",)
    with (
        repository.writer(layer=GistBuilder(BASE, NET).spec) as writer,
        pytest.raises(InvalidInput, match="not a live document"),
    ):
        writer.remove_document(record)


def test_a_layer_that_was_not_written_along_is_brought_up_to_date(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "m.mc", segment_blocks=32)
    add(repository, "text:a", text(1, 500))
    add(repository, "text:b", text(2, 300))
    remove(repository, None, None, ["text:a"])
    builder = GistBuilder(BASE, NET)
    assert repository.snapshot().stale_layers == {builder.spec.fingerprint}
    with pytest.raises(InvalidInput, match="still holds blocks that are dead"):
        repository.writer(layer=builder.spec)
    with repository.add_layer(builder.spec) as writer:
        with pytest.raises(InvalidInput, match="patch it first"):
            writer.commit()
        writer.patch(builder.remake(writer.stored(), writer.tokens.timeline(), writer.died))
        writer.commit("Without what was removed")
    assert not repository.snapshot().stale_layers
    gists_are_of_live_children(repository.snapshot(), NET)
