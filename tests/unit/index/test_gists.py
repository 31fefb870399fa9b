"""Search by gists: a wide beam finds what looking at everything finds, a narrow one reads little; nothing hidden shows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.errors import ConfigError
from megacontext.index.fusion import fused
from megacontext.index.gists import GistSearchConfig, search, unit, vectors
from megacontext.storage import LayerSpec, Repository, Snapshot

SPEC = LayerSpec(fingerprint="test", vectors=2, width=6)
EVERYTHING = GistSearchConfig(beam=None)


def memory(path: Path, blocks: int, seed: int = 0, spans: tuple[int, ...] = ()) -> Repository:
    """Gists by chance at level 1, means of the children above; a document begins at each of `spans`."""
    rng = np.random.default_rng(seed)
    levels = {1: rng.normal(size=(blocks, *SPEC.shape)).astype(np.float16)}
    while len(levels[max(levels)]) >= 32:
        below = levels[max(levels)]
        whole = len(below) // 32
        levels[max(levels) + 1] = below[: whole * 32].reshape(whole, 32, *SPEC.shape).mean(axis=1).astype(np.float16)
    repository = Repository.create(path, created=0.0, segment_blocks=32)
    edges = [0, *spans, blocks]
    with repository.writer(layer=SPEC) as writer:
        for start, stop in pairwise(edges):
            writer.begin_document(source=f"text:{start}", ingested_at=float(start))
            ids = rng.integers(0, 99, (stop - start, 32)).astype(np.uint32)
            shares = {lod: (start // 32 ** (lod - 1), stop // 32 ** (lod - 1)) for lod in levels}
            writer.append_blocks(ids, gists={lod: (a, levels[lod][a:b]) for lod, (a, b) in shares.items() if a < b})
            writer.end_document()
        writer.commit("", time=0.0)
    return repository


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Three levels and what has no parent yet."""
    return memory(tmp_path_factory.mktemp("large") / "memory", 1024 + 5 * 32 + 7).snapshot()


def literally(snapshot: Snapshot, query: np.ndarray, seen: list[int]) -> list[int]:
    """The definition of likeness, read literally: blocks, most alike first."""
    gists = snapshot.gists(1, 0, snapshot.blocks).astype(np.float64)
    likeness = {}
    for block in seen:
        rows = gists[block] / np.linalg.norm(gists[block], axis=1, keepdims=True)
        likeness[block] = float(np.mean([max(float(row @ entry) for row in rows) for entry in query]))
    return sorted(seen, key=lambda block: -likeness[block])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), entries=st.integers(1, 4), part=st.none() | st.integers(2, 40))
def test_a_beam_as_wide_as_the_tree_finds_what_reading_everything_finds(
    large: Snapshot, seed: int, entries: int, part: int | None
) -> None:
    query = unit(np.random.default_rng(seed).normal(size=(entries, SPEC.width)).astype(np.float32))
    allowed = None if part is None else lambda blocks: blocks % part == 1
    seen = [block for block in range(large.blocks) if part is None or block % part == 1]
    expected = literally(large, query, seen)[:9]
    for config in (EVERYTHING, GistSearchConfig(beam=64)):
        found = search(large, large.layer(), query, vectors, 9, allowed=allowed, config=config)
        assert found.hits.blocks.tolist() == expected
        assert (np.diff(found.hits.scores) <= 0).all()
    assert search(large, large.layer(), query, vectors, 10**6, config=EVERYTHING).read == large.blocks


def test_what_a_search_reads_does_not_grow_with_the_history(tmp_path: Path, large: Snapshot) -> None:
    query = unit(np.ones((2, SPEC.width), np.float32))
    small = memory(tmp_path / "memory", 5 * 32 + 7).snapshot()
    for snapshot, levels in ((small, 2), (large, 3)):
        for beam in (1, 4):
            read = search(snapshot, snapshot.layer(), query, vectors, 5, config=GistSearchConfig(beam=beam)).read
            assert 0 < read <= levels * (32 * beam + 31)


def test_a_block_is_found_by_its_own_gist_where_the_gists_above_lead_there(tmp_path: Path) -> None:
    snapshot = memory(tmp_path / "memory", 1024).snapshot()
    hits = 0
    for block in range(0, 1024, 31):
        query = vectors(snapshot.gists(1, block, block + 1))[0]
        found = search(snapshot, snapshot.layer(), query, vectors, 1, config=GistSearchConfig(beam=8)).hits
        assert found.scores[0] <= 1.0001
        hits += found.blocks.tolist() == [block]
    assert hits >= 13  # of 34: eight of 32 parents by chance lead to a quarter


@pytest.mark.parametrize("hide", ["dead", "denied", "pruned"])
def test_what_is_hidden_is_never_found_and_steers_nothing(tmp_path: Path, hide: str) -> None:
    snapshot = memory(tmp_path / "memory", 40 * 32).snapshot()
    whole = snapshot.timeline()
    hidden = [(3, 5), (64, 96), (500, 501)]
    change: Callable[..., object] = {"denied": whole.deny, "pruned": whole.prune}.get(hide, whole.kill)
    timeline = whole
    if hide == "dead":
        for start, stop in hidden:
            timeline = timeline.kill(start, stop)
    else:
        timeline = change(tuple(hidden))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "timeline", lambda: timeline)
        for block in (4, 70, 500):
            query = vectors(snapshot.gists(1, block, block + 1))[0]
            for beam in (4, None):
                found = search(snapshot, snapshot.layer(), query, vectors, 2000, config=GistSearchConfig(beam=beam)).hits.blocks
                assert not any(((found >= start) & (found < stop)).any() for start, stop in hidden)
                assert beam is not None or len(found) == 40 * 32 - 35


def test_a_denied_reader_searches_past_gists_that_he_must_not_have(tmp_path: Path) -> None:
    root = memory(tmp_path / "memory", 40 * 32, spans=(100, 130)).root
    Repository.open(root).label(lambda _, labels: labels.add(["secret"], 100, 130))
    reader = Repository.open(root, deny=["secret"]).snapshot()
    free = Repository.open(root).snapshot()
    for block in (99, 110, 131, 1279):  # The guard raises AccessDenied if a search asks for one gist too many.
        query = vectors(free.gists(1, block, block + 1))[0]
        for beam in (1, 4):
            found = search(reader, reader.layer(), query, vectors, 50, config=GistSearchConfig(beam=beam)).hits.blocks
            assert len(found) and not ((found >= 100) & (found < 130)).any()
        best = search(reader, reader.layer(), query, vectors, 1, config=EVERYTHING).hits.blocks.tolist()
        assert best == [block] or block == 110


def test_nothing_to_find_and_wrong_settings(tmp_path: Path, large: Snapshot) -> None:
    query = unit(np.ones((1, SPEC.width), np.float32))
    assert len(search(large, large.layer(), query[:0], vectors, 5).hits.blocks) == 0
    assert len(search(large, large.layer(), query, vectors, 0).hits.blocks) == 0
    assert len(search(large, large.layer(), query, vectors, 5, allowed=lambda blocks: blocks < 0).hits.blocks) == 0
    with pytest.raises(ConfigError):
        GistSearchConfig(beam=0)


def test_fusion_counts_places_not_scores() -> None:
    hits = fused([np.array([5, 1, 9]), np.array([1, 7]), np.array([], np.int64)], 3)
    assert hits.blocks.tolist() == [1, 5, 7]
    np.testing.assert_allclose(hits.scores, [1 / 62 + 1 / 61, 1 / 61, 1 / 62], rtol=1e-6)
    assert len(fused([], 5).blocks) == 0
