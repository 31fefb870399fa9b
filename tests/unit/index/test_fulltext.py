"""Full-text search finds what a search through everything finds, whatever state the index file is in."""

from __future__ import annotations

import math
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.errors import ConfigError
from megacontext.index.bm25 import Bm25Config
from megacontext.index.fulltext import FILE, FOLDER, FullTextConfig, FullTextIndex
from megacontext.storage.repository import Repository
from megacontext.storage.snapshot import Snapshot

EOS = 7
CONFIG = FullTextConfig(max_terms=4, max_postings=24)


def add(repository: Repository, ids: np.ndarray, *, branch: str | None = None, commit: bool = True) -> None:
    """Writes one document of the given tokens; its last block is filled up with zeros."""
    blocks = np.zeros((-(-len(ids) // 32), 32), np.uint32)
    blocks.ravel()[: len(ids)] = ids
    fill = np.full(len(blocks), 32, np.uint8)
    fill[-1] = len(ids) - 32 * (len(blocks) - 1)
    with repository.writer(branch) as writer:
        writer.begin_document(source=f"text:{writer.blocks}", ingested_at=0.0)
        writer.append_blocks(blocks, fill)
        writer.end_document()
        if commit:
            writer.commit("", time=0.0)


def memory(root: Path, seed: int = 0, documents: int = 6, vocabulary: int = 120) -> Repository:
    """Segments of 32 blocks, several of them, and a tail."""
    rng = np.random.default_rng(seed)
    repository = Repository.create(root / "memory", created=0.0, segment_blocks=32)
    for number in range(documents):
        ids = (rng.zipf(1.3, int(rng.integers(1, 900))) - 1) % vocabulary
        add(repository, ids.astype(np.uint32), commit=number < documents - 1)
    return repository


def brute_force(
    snapshot: Snapshot,
    query: list[int],
    limit: int,
    before: int | None,
    config: FullTextConfig = CONFIG,
    allowed: frozenset[int] | None = None,
) -> list[tuple[int, float]]:
    """The definition in the module's docstring, read literally."""
    ids, fill = snapshot.tokens(0, snapshot.blocks), snapshot.fill(0, snapshot.blocks)
    texts = [row[:count].tolist() for row, count in zip(ids, fill, strict=True)]
    live = [block for block in range(len(texts)) if not snapshot.timeline().is_dead(0, block)]
    seen = [block for block in live if allowed is None or block in allowed]

    def count(term: int) -> int:
        holds = [block for block in seen if term in texts[block]]
        sealed = sum(block < snapshot.sealed_blocks for block in holds)
        return len(holds) - (0 if allowed is None else max(sealed - config.max_postings, 0))

    frequency = {term: count(term) for term in set(query) - {EOS}}
    kept: list[int] = []
    for term in sorted((term for term in frequency if frequency[term]), key=lambda term: (frequency[term], term)):
        full = sum(frequency[each] for each in [*kept, term]) > config.max_postings
        if (kept and full) or len(kept) == config.max_terms:
            break
        kept.append(term)
    stop = len(texts) if before is None else min(before, len(texts))
    holds = [block for block in seen if block < stop and set(kept) & set(texts[block])]
    sealed = [block for block in holds if block < snapshot.sealed_blocks][-config.max_postings :]
    found = []
    for block in sealed + [block for block in holds if block >= snapshot.sealed_blocks]:
        score, length = 0.0, len(texts[block]) / 32
        for term in kept:
            weight = math.log(1 + (len(live) - frequency[term] + 0.5) / (frequency[term] + 0.5))
            times = texts[block].count(term)
            norm = config.bm25.k1 * (1 - config.bm25.b + config.bm25.b * length)
            score += weight * times * (config.bm25.k1 + 1) / (times + norm)
        found.append((block, score))
    return sorted(found, key=lambda hit: (-hit[1], -hit[0]))[:limit]


def check(
    index: FullTextIndex,
    snapshot: Snapshot,
    query: list[int],
    limit: int = 10,
    before: int | None = None,
    allowed: frozenset[int] | None = None,
) -> None:
    expected = brute_force(snapshot, query, limit, before, allowed=allowed)
    keep = None if allowed is None else lambda blocks: np.isin(blocks, sorted(allowed))
    hits = index.search(snapshot, query, limit, before, keep)
    assert hits.blocks.dtype == np.int64 and hits.scores.dtype == np.float32
    np.testing.assert_allclose(hits.scores, [score for _, score in expected], rtol=1e-5)
    # Up to ties: where scores are equal but for rounding, either order is right.
    exact = dict(brute_force(snapshot, query, snapshot.blocks + 1, before, allowed=allowed))
    np.testing.assert_allclose([exact[block] for block in hits.blocks.tolist()], hits.scores, rtol=1e-5)
    assert len(set(hits.blocks.tolist())) == len(hits.blocks)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return memory(tmp_path)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    documents=st.integers(1, 8),
    queries=st.lists(
        st.tuples(st.lists(st.integers(0, 130), max_size=12), st.integers(1, 30), st.none() | st.integers(0, 200)),
        min_size=1,
        max_size=6,
    ),
)
def test_equals_brute_force(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    documents: int,
    queries: list[tuple[list[int], int, int | None]],
) -> None:
    repository = memory(tmp_path_factory.mktemp("bm25"), seed, documents)
    index = FullTextIndex(repository.root, special_ids=[EOS], config=CONFIG)
    snapshot = repository.snapshot()
    for query, limit, before in queries:
        check(index, snapshot, query, limit, before)
    index.close()


def test_rebuilt_equals_incremental(repository: Repository) -> None:
    grown = FullTextIndex(repository.root, config=CONFIG)
    rng = np.random.default_rng(5)
    for _ in range(6):
        add(repository, rng.integers(0, 120, 700).astype(np.uint32))
        grown.ensure(repository.snapshot())
    snapshot = repository.snapshot()
    assert snapshot.sealed_blocks >= 96
    queries = [rng.integers(0, 120, 8).tolist() for _ in range(20)]
    before = [grown.search(snapshot, query, 10) for query in queries]
    grown.delete()
    assert not grown.path.exists()
    after = [FullTextIndex(repository.root, config=CONFIG).search(snapshot, query, 10) for query in queries]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a.blocks, b.blocks)
        np.testing.assert_array_equal(a.scores, b.scores)


def test_branches_share_rows_and_never_see_each_other(repository: Repository) -> None:
    with repository.writer() as writer:
        writer.commit()
    repository.create_branch("other")
    for branch, term in (("main", 500), ("other", 501), ("main", 502), ("other", 500)):
        add(repository, np.full(40 * 32, term, np.uint32), branch=branch)
    index = FullTextIndex(repository.root, special_ids=[EOS], config=CONFIG)
    snapshots = [repository.snapshot("main"), repository.snapshot("other")]
    shared = len(set(snapshots[0].segments()) & set(snapshots[1].segments()))
    for snapshot in [*snapshots, *snapshots]:
        for query in ([500], [501], [502], [3, 500, 501, 60]):
            check(index, snapshot, query)
    total = sum(len(snapshot.segments()) for snapshot in snapshots)
    with sqlite3.connect(index.path) as db:
        (rows,) = db.execute("SELECT count(*) FROM segments").fetchone()
    db.close()
    assert shared and rows == total - shared


def test_one_segment_may_occur_twice(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "memory", segment_blocks=32)
    add(repository, np.tile(np.arange(32, dtype=np.uint32), 32 * 3))
    snapshot = repository.snapshot()
    assert len(snapshot.segments()) == 3 and len(set(snapshot.segments())) == 1
    index = FullTextIndex(repository.root, config=CONFIG)
    for before in (None, 95, 40, 3):
        check(index, snapshot, [5, 6], 40, before)
    assert index.search(snapshot, [5], 1).blocks.tolist() == [95]


def test_query_without_anything_to_look_for(repository: Repository) -> None:
    index, snapshot = FullTextIndex(repository.root, special_ids=[EOS]), repository.snapshot()
    for query in ([], [EOS], [99_999], np.zeros(0, np.int64)):
        assert len(index.search(snapshot, query, 5).blocks) == 0
    assert len(index.search(snapshot, [1], 0).blocks) == 0
    assert len(index.search(snapshot, [1], 5, before_block=0).blocks) == 0
    empty = Repository.create(repository.root.parent / "empty").snapshot()
    assert len(FullTextIndex(repository.root.parent / "empty").search(empty, [1], 5).blocks) == 0


def test_filling_is_no_text(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "memory", segment_blocks=32)
    for _ in range(40):
        add(repository, np.array([3, 4], np.uint32))  # filled up with token 0
    index, snapshot = FullTextIndex(repository.root), repository.snapshot()
    assert len(index.search(snapshot, [0], 5).blocks) == 0
    assert len(index.search(snapshot, [3], 5).blocks) == 5


def test_counts_of_long_timelines_come_from_checkpoints(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "memory", segment_blocks=32)
    rng = np.random.default_rng(1)
    for _ in range(2):
        add(repository, rng.integers(0, 3000, 32 * 32 * 40).astype(np.uint32))
        index = FullTextIndex(repository.root, config=CONFIG)
        snapshot = repository.snapshot()
        check(index, snapshot, rng.integers(0, 3000, 5).tolist())
        index.close()
    with sqlite3.connect(index.path) as db:
        (rows,) = db.execute("SELECT count(*) FROM totals").fetchone()
    db.close()
    assert rows == 2


@pytest.mark.parametrize("damage", ["garbage", "truncated", "foreign", "version", "counts"])
def test_damaged_file_is_rebuilt(repository: Repository, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    snapshot = repository.snapshot()
    first = FullTextIndex(repository.root, special_ids=[EOS], config=CONFIG)
    first.ensure(snapshot)
    first.close()
    data = first.path.read_bytes()
    if damage == "garbage":
        first.path.write_bytes(np.random.default_rng(0).bytes(len(data)))
    elif damage == "truncated":
        first.path.write_bytes(data[: len(data) // 2])
    else:
        db = sqlite3.connect(first.path)
        statement = {
            "foreign": "DROP TABLE segments",
            "version": "PRAGMA user_version = 99",
            "counts": "UPDATE segments SET counts = x'00'",
        }[damage]
        db.execute(statement)
        db.commit()
        db.close()
    index = FullTextIndex(repository.root, special_ids=[EOS], config=CONFIG)
    check(index, snapshot, [1, 5, 40, 100])
    assert "is damaged" in caplog.text
    index.close()
    again = FullTextIndex(repository.root, special_ids=[EOS], config=CONFIG)
    caplog.clear()
    check(again, snapshot, [1, 5, 40, 100])
    assert not caplog.text


def test_damage_while_open_is_survived(repository: Repository) -> None:
    index = FullTextIndex(repository.root, special_ids=[EOS], config=CONFIG)
    check(index, repository.snapshot(), [1, 50])
    for part in repository.root.joinpath(FOLDER).iterdir():
        part.write_bytes(b"x" * 8192)
    for seed in range(3):
        add(repository, np.random.default_rng(seed).integers(0, 120, 1500).astype(np.uint32))
        check(index, repository.snapshot(), [1, 50])


def test_without_a_writable_folder_the_index_is_in_memory(repository: Repository, caplog: pytest.LogCaptureFixture) -> None:
    (repository.root / FOLDER).write_text("not a folder")
    index = FullTextIndex(repository.root, special_ids=[EOS], config=CONFIG)
    for _ in range(2):
        check(index, repository.snapshot(), [1, 5, 40, 100])
        add(repository, np.random.default_rng(2).integers(0, 120, 1500).astype(np.uint32))
    assert caplog.text.count("kept in memory") == 1


def test_interrupted_indexing_goes_on(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = repository.snapshot()
    assert len(snapshot.segments()) >= 2
    index = FullTextIndex(repository.root, special_ids=[EOS], config=CONFIG)
    read = Snapshot.tokens

    def broken(self: Snapshot, start: int, stop: int) -> np.ndarray:
        if start == 32:
            raise KeyboardInterrupt
        return read(self, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, "tokens", broken)
        with pytest.raises(KeyboardInterrupt):
            index.ensure(snapshot)
    with sqlite3.connect(index.path) as db:
        assert db.execute("SELECT count(*) FROM segments").fetchone() == (1,)
    db.close()
    check(index, snapshot, [1, 5, 40, 100])


def test_threads_share_an_index_and_processes_a_file(repository: Repository) -> None:
    snapshot = repository.snapshot()
    shared = FullTextIndex(repository.root, special_ids=[EOS], config=CONFIG)
    own = [FullTextIndex(repository.root, special_ids=[EOS], config=CONFIG) for _ in range(3)]
    errors: list[BaseException] = []

    def work(index: FullTextIndex) -> None:
        try:
            for query in ([1, 5, 40], [100, 2]):
                check(index, snapshot, query)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in [shared, shared, *own]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with sqlite3.connect(repository.root / FOLDER / FILE) as db:
        assert db.execute("SELECT count(*) FROM segments").fetchone() == (len(snapshot.segments()),)
    db.close()


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    dead=st.lists(st.tuples(st.integers(0, 150), st.integers(1, 60)), max_size=4),
    allowed=st.none() | st.frozensets(st.integers(0, 200), max_size=150),
    queries=st.lists(st.lists(st.integers(0, 130), max_size=12), min_size=1, max_size=3),
)
def test_what_is_dead_or_denied_is_as_if_it_were_not_there(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    dead: list[tuple[int, int]],
    allowed: frozenset[int] | None,
    queries: list[list[int]],
) -> None:
    repository = memory(tmp_path_factory.mktemp("dead"), seed)
    index = FullTextIndex(repository.root, special_ids=[EOS], config=CONFIG)
    snapshot = repository.snapshot()
    timeline = snapshot.timeline()
    for start, length in dead:
        if start < snapshot.blocks:
            timeline = timeline.kill(start, min(start + length, snapshot.blocks))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "timeline", lambda: timeline)
        for query in queries:
            check(index, snapshot, query, 50, allowed=allowed)
    index.close()


def test_one_kill_after_another_counts_what_is_live(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = repository.snapshot()
    index = FullTextIndex(repository.root, special_ids=[EOS], config=CONFIG)
    timeline = snapshot.timeline()
    monkeypatch.setattr(snapshot, "timeline", lambda: timeline)
    for start, stop in ((2, 20), (18, 70), (1, 2), (0, 32)):
        timeline = timeline.kill(start, stop)
        for query in ([1, 5], [40, 100, 3]):
            check(index, snapshot, query, 50)


def test_configs_are_checked() -> None:
    with pytest.raises(ConfigError):
        FullTextConfig(max_terms=0)
    with pytest.raises(ConfigError):
        Bm25Config(b=2.0)
