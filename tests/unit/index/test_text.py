"""Text search finds what reading everything finds, whatever is typed and whatever state the index file is in."""

from __future__ import annotations

import math
import re
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from index_kit import WORDS, add_words, decode, memory_of_words

from megacontext.errors import ConfigError
from megacontext.index import disposable
from megacontext.index.disposable import FOLDER
from megacontext.index.passages import OVERLAP, folded, terms_of
from megacontext.index.text import FILE, TextConfig, TextIndex
from megacontext.storage.repository import Repository
from megacontext.storage.snapshot import Snapshot

# Everything is looked at, so that what is found does not depend on what is not.
ALL = TextConfig(max_together=10_000, max_each=10_000)
TYPED = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=6).map("".join),
    st.text(max_size=20),
    st.text(alphabet="\"'()*:^-+{} ANDORNOTEAR,abx", max_size=24),
)


def read_everything(snapshot: Snapshot, query: str, allowed: frozenset[int] | None = None) -> list[tuple[int, float]]:
    """The definition in the docstrings of `text` and `passages`, read literally."""
    terms = terms_of(query)
    ids, fill = snapshot.tokens(0, snapshot.blocks).tolist(), snapshot.fill(0, snapshot.blocks).tolist()
    owner = snapshot.documents_at(np.arange(snapshot.blocks)).tolist()
    live = [block for block in range(snapshot.blocks) if not snapshot.timeline().is_dead(0, block)]
    counts: dict[int, list[float]] = {}
    for block in live:
        if allowed is not None and block not in allowed:
            continue
        own = "".join(WORDS[token] for token in ids[block][: fill[block]])
        more = ""
        if block + 1 < snapshot.blocks and owner[block + 1] == owner[block]:
            more = "".join(WORDS[token] for token in ids[block + 1][: min(fill[block + 1], OVERLAP)])
        text, reach = folded(own + more), len(folded(own))
        counts[block] = []
        for term in terms:
            total, at = 0.0, text.find(term.text)
            while 0 <= at < reach:
                stop = at + len(term.text)
                word_before = bool(re.match(r"\w\w", text[at - 1 : at + 1])) if at else False
                word_behind = bool(re.match(r"\w\w", text[stop - 1 : stop + 1]))
                total += 0.5 if word_before or word_behind else 1.0
                at = text.find(term.text, stop)
            counts[block].append(total)
    frequency = [sum(each[at] > 0 for each in counts.values()) for at in range(len(terms))]
    found = []
    for block, each in counts.items():
        score = 0.0
        for times, holders in zip(each, frequency, strict=True):
            weight = math.log(1 + (len(live) - holders + 0.5) / (holders + 0.5))
            score += weight * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * fill[block] / 32))
        if score and all(times for times, term in zip(each, terms, strict=True) if term.required):
            found.append((block, score))
    return sorted(found, key=lambda hit: (-hit[1], -hit[0]))


def check(index: TextIndex, snapshot: Snapshot, query: str, limit: int = 12, allowed: frozenset[int] | None = None) -> None:
    keep = None if allowed is None else lambda blocks: np.isin(blocks, sorted(allowed))
    hits = index.search(snapshot, query, limit, None, keep)
    assert hits.blocks.dtype == np.int64 and hits.scores.dtype == np.float32
    everything = read_everything(snapshot, query, allowed)
    np.testing.assert_allclose(hits.scores, [score for _, score in everything[:limit]], rtol=1e-5)
    exact = dict(everything)  # Where scores are equal but for rounding, either order is right.
    np.testing.assert_allclose([exact[block] for block in hits.blocks.tolist()], hits.scores, rtol=1e-5)
    assert len(set(hits.blocks.tolist())) == len(hits.blocks)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return memory_of_words(tmp_path)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextIndex, Snapshot]:
    repository = memory_of_words(tmp_path_factory.mktemp("searched"), seed=3)
    return TextIndex(repository.root, decode, config=ALL), repository.snapshot()


@settings(max_examples=40, deadline=None)
@given(query=TYPED, limit=st.integers(1, 40))
@example(query='name3 "retry_policy self" AND', limit=5)
@example(query='"', limit=5)
@example(query='"unbalanced retry', limit=5)
@example(query="试 ab", limit=9)
@example(query="\x00 \ud800 x", limit=9)
@example(query="a", limit=9)
@example(query="strasse", limit=40)
def test_whatever_is_typed_equals_reading_everything(searched: tuple[TextIndex, Snapshot], query: str, limit: int) -> None:
    check(*searched, query, limit)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    dead=st.lists(st.tuples(st.integers(0, 120), st.integers(1, 60)), max_size=3),
    allowed=st.none() | st.frozensets(st.integers(0, 150), max_size=120),
    queries=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join), min_size=1, max_size=3),
)
def test_what_is_dead_or_denied_is_as_if_it_were_not_there(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    dead: list[tuple[int, int]],
    allowed: frozenset[int] | None,
    queries: list[str],
) -> None:
    repository = memory_of_words(tmp_path_factory.mktemp("dead"), seed)
    index, snapshot = TextIndex(repository.root, decode, config=ALL), repository.snapshot()
    timeline = snapshot.timeline()
    for start, length in dead:
        if start < snapshot.blocks:
            timeline = timeline.kill(start, min(start + length, snapshot.blocks))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "timeline", lambda: timeline)
        for query in queries:
            check(index, snapshot, query, 50, allowed)
    index.close()


def test_what_a_block_edge_cuts_is_found_also_between_segments_and_into_the_tail(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "memory", created=0.0, segment_blocks=32)
    ids = np.full(32 * 70, WORDS.index("b"), np.uint32)
    for block in (5, 31, 63, 66):  # within a segment, between two, between the last and the tail, in the tail
        ids[block * 32 + 31], ids[block * 32 + 32] = WORDS.index("retry"), WORDS.index("_policy")
    add_words(repository, ids)
    snapshot = repository.snapshot()
    assert snapshot.sealed_blocks == 64
    hits = TextIndex(repository.root, decode).search(snapshot, "RETRY_policy", 9)
    assert sorted(hits.blocks.tolist()) == [5, 31, 63, 66]


def test_the_unfinished_block_is_read_behind_the_last_one(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "memory", created=0.0, segment_blocks=32)
    ids = np.full(32 * 3 + 5, WORDS.index("b"), np.uint32)
    ids[95:97] = WORDS.index("retry"), WORDS.index("_policy")
    with repository.writer() as writer:
        writer.begin_document(source="session:x", ingested_at=0.0, open=True)
        writer.append_tokens(ids)
        assert TextIndex(repository.root, decode).search(writer.snapshot(), "retry_policy", 3).blocks.tolist() == [2]


def test_work_is_bounded_and_the_newest_come_first(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "memory", created=0.0, segment_blocks=32)
    add_words(repository, np.full(32 * 200, WORDS.index("retry"), np.uint32))
    snapshot = repository.snapshot()
    index = TextIndex(repository.root, decode, config=TextConfig(max_together=10, max_each=4))
    tail = snapshot.blocks - snapshot.sealed_blocks
    found = index.search(snapshot, "retry", 500).blocks.tolist()
    assert found == list(range(199, 199 - 10 - tail, -1))
    assert index.search(snapshot, "retry missing", 500).blocks.tolist() == list(range(199, 199 - 4 - tail, -1))
    before = index.search(snapshot, "retry", 500, before_block=40, allowed=lambda blocks: blocks % 2 == 0)
    assert before.blocks.tolist() == list(range(38, 38 - 20, -2))


def test_branches_share_pieces_and_never_see_each_other(repository: Repository) -> None:
    with repository.writer() as writer:
        writer.commit()
    repository.create_branch("other")
    for branch, word in (("main", "name1"), ("other", "name2"), ("main", "name3"), ("other", "name1")):
        add_words(repository, np.full(40 * 32, WORDS.index(word), np.uint32), branch=branch)
    index = TextIndex(repository.root, decode, config=ALL)
    snapshots = [repository.snapshot("main"), repository.snapshot("other")]
    shared = len(set(snapshots[0].segments()) & set(snapshots[1].segments()))
    for snapshot in [*snapshots, *snapshots]:
        for query in ("name1", "name2", "name3", "retry name1 name2"):
            check(index, snapshot, query)
    assert len(index.search(snapshots[0], '"name2name2name2"', 9).blocks) == 0
    with sqlite3.connect(index.path) as db:
        (pieces,) = db.execute("SELECT count(*) FROM pieces").fetchone()
    db.close()
    assert shared and pieces == sum(len(snapshot.segments()) for snapshot in snapshots) - shared


def test_what_is_new_is_all_that_is_indexed(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    grown, rng = TextIndex(repository.root, decode, config=ALL), np.random.default_rng(5)
    grown.ensure(repository.snapshot())
    read: list[int] = []
    piece = TextIndex._piece
    monkeypatch.setattr(
        TextIndex, "_piece", lambda self, view, number, size: read.append(number) or piece(self, view, number, size)
    )
    before = len(repository.snapshot().segments())
    for _ in range(3):
        add_words(repository, rng.integers(0, len(WORDS), 1200).astype(np.uint32))
        check(grown, repository.snapshot(), "retry name4")
    assert read == list(range(before, len(repository.snapshot().segments())))
    grown.delete()
    assert not any(grown.path.parent.iterdir())
    check(grown, repository.snapshot(), "retry name4")


@pytest.mark.parametrize(
    "damage",
    ["garbage", "truncated", "empty", "no table", "no rows", "future", "lengths", "shifted", "folder", "link", "absent"],
)
def test_any_damage_costs_time_and_nothing_else(repository: Repository, damage: str, tmp_path: Path) -> None:
    snapshot = repository.snapshot()
    first = TextIndex(repository.root, decode, config=ALL)
    check(first, snapshot, "retry name7 ab")
    first.close()
    statements = {
        "no table": "DROP TABLE pieces",
        "no rows": "INSERT INTO grams(grams) VALUES ('delete-all')",
        "future": "PRAGMA user_version = 99",
        "lengths": "UPDATE pieces SET rows = 7",
        "shifted": "UPDATE pieces SET first_row = first_row + 5",
    }
    if damage in statements:
        db = sqlite3.connect(first.path)
        db.execute(statements[damage])
        db.commit()
        db.close()
    else:
        data = first.path.read_bytes()
        first.path.unlink()
        if damage == "folder":
            (first.path / "inside").mkdir(parents=True)
        elif damage == "link":
            first.path.symlink_to(tmp_path / "nowhere" / "file")
        elif damage != "absent":
            noise = np.random.default_rng(0).bytes(len(data))
            first.path.write_bytes({"garbage": noise, "truncated": data[: len(data) // 2], "empty": b""}[damage])
    index = TextIndex(repository.root, decode, config=ALL)
    for query in ("retry name7 ab", '"self"', "x"):
        check(index, snapshot, query)
    index.close()


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_flipped_bytes_never_show_what_is_not_there(searched: tuple[TextIndex, Snapshot], data: st.DataObject) -> None:
    index, snapshot = searched
    index.ensure(snapshot)
    index.close()  # The last to close puts all into the one file.
    whole = bytearray(index.path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=30)):
        whole[at] ^= data.draw(st.integers(1, 255))
    index.path.write_bytes(whole)
    for query in ("retry", "name7 (", "ab x"):
        right = {block for block, _ in read_everything(snapshot, query)}
        assert set(index.search(snapshot, query, 500).blocks.tolist()) <= right
    index.delete()
    check(index, snapshot, "retry")


def test_a_file_that_somebody_removes_is_let_go(repository: Repository) -> None:
    index, snapshot = TextIndex(repository.root, decode, config=ALL), repository.snapshot()
    check(index, snapshot, "retry")
    assert FILE in disposable.delete_all(repository.root)
    check(index, snapshot, "name2")
    assert index.path.exists()


def test_a_locked_file_is_not_waited_for_forever(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disposable, "BUSY_MS", 50)
    index, snapshot = TextIndex(repository.root, decode, config=ALL), repository.snapshot()
    index.ensure(snapshot)
    add_words(repository, np.random.default_rng(1).integers(0, len(WORDS), 1500).astype(np.uint32))
    lock = sqlite3.connect(index.path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        for each in (index, TextIndex(repository.root, decode, config=ALL)):
            check(each, repository.snapshot(), "retry name3")
    finally:
        lock.close()


def test_without_a_writable_folder_the_index_is_in_memory(repository: Repository, caplog: pytest.LogCaptureFixture) -> None:
    (repository.root / FOLDER).write_text("not a folder")
    index = TextIndex(repository.root, decode, config=ALL)
    for _ in range(2):
        check(index, repository.snapshot(), "retry name3")
        add_words(repository, np.random.default_rng(2).integers(0, len(WORDS), 1500).astype(np.uint32))
    assert caplog.text.count("kept in memory") == 1


def test_interrupted_indexing_goes_on(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, index = repository.snapshot(), TextIndex(repository.root, decode, config=ALL)
    piece = TextIndex._piece

    def broken(self: TextIndex, view: Snapshot, number: int, size: int) -> list[str]:
        if number == 1:
            raise KeyboardInterrupt
        return piece(self, view, number, size)

    with monkeypatch.context() as patch:
        patch.setattr(TextIndex, "_piece", broken)
        with pytest.raises(KeyboardInterrupt):
            index.ensure(snapshot)
    with sqlite3.connect(index.path) as db:
        assert db.execute("SELECT count(*) FROM pieces").fetchone() == (1,)
    db.close()
    check(index, snapshot, "retry name3")


def test_threads_share_an_index(repository: Repository) -> None:
    snapshot = repository.snapshot()
    shared, own = TextIndex(repository.root, decode, config=ALL), TextIndex(repository.root, decode, config=ALL)
    errors: list[BaseException] = []

    def work(index: TextIndex) -> None:
        try:
            for query in ("retry name3", "x ab"):
                check(index, snapshot, query)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in (shared, shared, own)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_processes_share_a_file(repository: Repository) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from index_kit import decode\n"
        "from megacontext.index.text import TextIndex\n"
        "from megacontext.storage.repository import Repository\n"
        "repository = Repository.open(sys.argv[1])\n"
        "hits = TextIndex(repository.root, decode).search(repository.snapshot(), 'retry name3', 8)\n"
        "print(hits.blocks.tolist())"
    )
    words = [sys.executable, "-c", script, str(repository.root), str(Path(__file__).parent), *sys.path]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {each.communicate(timeout=60)[0] for each in running}
    snapshot = repository.snapshot()
    expected = TextIndex(repository.root, decode).search(snapshot, "retry name3", 8).blocks.tolist()
    assert expected and answers == {f"{expected}\n"}
    with sqlite3.connect(repository.root / FOLDER / FILE) as db:
        assert db.execute("SELECT count(*) FROM pieces").fetchone() == (len(snapshot.segments()),)
    db.close()


def test_nothing_to_look_for(repository: Repository) -> None:
    index, snapshot = TextIndex(repository.root, decode), repository.snapshot()
    for query in ("", "  ", '""', '" "', "\x00"):
        assert len(index.search(snapshot, query, 5).blocks) == 0
    assert len(index.search(snapshot, "retry", 0).blocks) == 0
    assert len(index.search(snapshot, "retry", 5, before_block=0).blocks) == 0
    empty = Repository.create(repository.root.parent / "empty").snapshot()
    assert len(TextIndex(repository.root.parent / "empty", decode).search(empty, "retry", 5).blocks) == 0


def test_terms_and_configs() -> None:
    words = [(term.text, term.required) for term in terms_of('Retry "The  Policy" it\'s "x retry')]
    assert words == [("retry", False), ("the policy", True), ("it's", False), ('"x', False)]
    assert len(terms_of(" ".join(map(str, range(100))))) == 16 and len(terms_of("y" * 10_000)[0].text) == 256
    with pytest.raises(ConfigError):
        TextConfig(max_each=0)
