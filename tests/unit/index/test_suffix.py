"""The suffix index finds what a look at every token finds, whatever state its files are in and whoever asks."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.index.disposable import FOLDER, delete_all
from megacontext.index.suffix import LONGEST, Matches, SuffixIndex
from megacontext.index.suffix_grams import LENGTHS
from megacontext.index.suffix_runs import Span, tiling
from megacontext.storage import Repository, Snapshot


def add(repository: Repository, ids: np.ndarray, *, branch: str | None = None, source: str = "", commit: bool = True) -> None:
    """Writes one document of the given tokens; its last block is filled up with zeros."""
    blocks = np.zeros((-(-len(ids) // 32), 32), np.uint32)
    blocks.ravel()[: len(ids)] = ids
    fill = np.full(len(blocks), 32, np.uint8)
    fill[-1] = len(ids) - 32 * (len(blocks) - 1)
    with repository.writer(branch) as writer:
        writer.begin_document(source=source or f"text:{writer.blocks}", ingested_at=0.0)
        writer.append_blocks(blocks, fill)
        writer.end_document()
        if commit:
            writer.commit("", time=0.0)


def memory(root: Path, seed: int, documents: int, vocabulary: int = 3) -> Repository:
    """Segments of 32 blocks and a tail, of few words, so that long matches are many; one document replaced another."""
    rng = np.random.default_rng(seed)
    repository = Repository.create(root / "memory", created=0.0, segment_blocks=32)
    for number in range(documents):
        source = "twice" if number in (1, documents - 2) else ""
        add(repository, text(rng, vocabulary), source=source, commit=number < documents - 1)
    return repository


def text(rng: np.random.Generator, vocabulary: int, most: int = 700) -> np.ndarray:
    """Random words with pasted repeats."""
    ids = rng.integers(0, vocabulary, int(rng.integers(1, most)))
    for _ in range(3):
        length = int(rng.integers(1, 40))
        if len(ids) > 2 * length:
            start, to = rng.integers(0, len(ids) - length, 2)
            ids[to : to + length] = ids[start : start + length].copy()
    return ids.astype(np.uint32)


def brute_force(snapshot: Snapshot, query: list[int], each: int, stop: int) -> list[tuple[int, int]]:
    """The definition in the module's docstring, read literally: (place, length)."""
    blocks = np.arange(snapshot.blocks)
    ids, fill = snapshot.shown_at(blocks)
    gone = snapshot.timeline().absent_mask(np.zeros(len(blocks), np.int8), blocks)
    seen = [(block, slot) for block in blocks.tolist() if not gone[block] for slot in range(int(fill[block]))]
    document = {block: int(snapshot.documents_at(np.array([block]))[0]) for block in {block for block, _ in seen}}
    token = {block * 32 + slot: (int(ids[block, slot]), document[block]) for block, slot in seen}
    lengths = {}
    for place in token:
        if place >= stop or token.get(place - 1, (0, -1))[1] != token[place][1]:
            continue
        wanted = [(word, token[place][1]) for word in query[-LONGEST:]]
        length = next((n for n, word in enumerate(reversed(wanted)) if token.get(place - 1 - n) != word), len(wanted))
        lengths[place] = length
    found = set()
    for n in LENGTHS:
        found |= set(sorted(place for place, length in lengths.items() if length >= n)[-each:])
    return sorted(((place, lengths[place]) for place in found), key=lambda match: (-match[1], -match[0]))


def pairs(matches: Matches) -> list[tuple[int, int]]:
    assert matches.places.dtype == matches.lengths.dtype == np.int64
    return list(zip(matches.places.tolist(), matches.lengths.tolist(), strict=True))


def queries_of(snapshot: Snapshot, rng: np.random.Generator, count: int) -> list[list[int]]:
    """What stands somewhere in the memory, and some more."""
    ids = snapshot.tokens(0, snapshot.blocks).ravel()
    found: list[list[int]] = []
    for _ in range(count):
        length, start = int(rng.integers(1, 50)), int(rng.integers(0, max(len(ids) - 50, 1)))
        found.append(ids[start : start + length].tolist())
    return [*found, rng.integers(0, 4, 12).tolist()]


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 9999), documents=st.integers(1, 7), each=st.integers(1, 9), vocabulary=st.sampled_from((2, 3, 40)))
def test_equals_brute_force(seed: int, documents: int, each: int, vocabulary: int) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        repository = memory(Path(folder), seed, documents, vocabulary)
        snapshot = repository.snapshot()
        index = SuffixIndex(repository.root, direct=1 if seed % 2 else 64)
        for query in queries_of(snapshot, rng, 3):
            stop = snapshot.blocks * 32 if rng.random() < 0.5 else int(rng.integers(0, snapshot.blocks * 32 + 1))
            found = index.find(snapshot, query, each=each, stop=stop)
            assert pairs(found) == brute_force(snapshot, query, each, stop)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 9999), spans=st.lists(st.tuples(st.integers(0, 90), st.integers(1, 30)), min_size=1, max_size=3))
def test_a_denied_reader_finds_what_he_would_without_the_denied_blocks(seed: int, spans: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        repository = memory(Path(folder), seed, 6)
        last = repository.snapshot().blocks
        for start, length in spans:
            at = min(start, last - 1), min(start, last - 1) + length
            repository.label(lambda _, labels, span=at: labels.add(["secret"], span[0], min(span[1], last)))
        index = SuffixIndex(repository.root)  # one for both readers
        whole, reader = repository.snapshot(), Repository.open(repository.root, deny=["secret"]).snapshot()
        for query in queries_of(whole, rng, 3):
            for view in (whole, reader):
                found = index.find(view, query, each=4)
                assert pairs(found) == brute_force(view, query, 4, view.blocks * 32)
            denied = reader.timeline().absent_mask(np.zeros(len(found.blocks), np.int8), found.blocks)
            assert not denied.any()


def test_branches_share_files_and_see_only_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    repository = memory(tmp_path, 3, 4)
    add(repository, rng.integers(0, 3, 3000).astype(np.uint32))
    repository.create_branch("other")
    canary = np.arange(1000, 1040, dtype=np.uint32)
    add(repository, canary, branch="other")
    index, here, there = SuffixIndex(repository.root), repository.snapshot(), repository.snapshot("other")
    assert len(index.find(there, canary[:20]).places) == 1
    before = sorted((tmp_path / "memory" / FOLDER).iterdir())
    assert not len(index.find(here, canary[:20]).places)
    assert sorted((tmp_path / "memory" / FOLDER).iterdir()) == before
    # Two sessions over one commit have one key, and tails of their own.
    with repository.writer("other") as writer:
        writer.begin_document(source="more", ingested_at=0.0, open=True)
        writer.append_tokens(np.full(96, 77, np.uint32))
        writer.sync()
        grown = writer.snapshot()
        assert len(index.find(grown, [77] * 8).places)
        assert not len(index.find(there, [77] * 8).places)
        writer.append_tokens(np.full(64, 78, np.uint32))
        writer.sync()
        assert len(index.find(writer.snapshot(), [78] * 8).places)


def test_grown_equals_rebuilt_and_old_runs_are_let_go(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    repository = Repository.create(tmp_path / "memory", created=0.0, segment_blocks=32)
    grown = SuffixIndex(repository.root, direct=1)
    sizes = []
    for _ in range(11):
        add(repository, rng.integers(0, 3, 1024).astype(np.uint32))
        grown.ensure(repository.snapshot())
        sizes.append(len(list((repository.root / FOLDER).glob("suffix-*.npy"))))
    snapshot = repository.snapshot()
    assert snapshot.sealed_blocks == 11 * 32 and sizes[-1] == 4 and max(sizes) <= 7
    for query in queries_of(snapshot, rng, 8):
        fresh = SuffixIndex(tmp_path / "elsewhere").find(snapshot, query)
        assert pairs(grown.find(snapshot, query)) == pairs(fresh)


@pytest.mark.parametrize("damage", ["cut", "zeros", "text", "shuffled", "gone", "folder gone"])
def test_damage_never_shows_what_is_not_there(tmp_path: Path, damage: str) -> None:
    repository = memory(tmp_path, 8, 6)
    snapshot, rng = repository.snapshot(), np.random.default_rng(0)
    queries = queries_of(snapshot, rng, 5)
    before = [pairs(SuffixIndex(repository.root).find(snapshot, query)) for query in queries]
    for path in (repository.root / FOLDER).glob("suffix-*.npy"):
        data = bytearray(path.read_bytes())
        if damage == "cut":
            data = data[: len(data) // 2]
        elif damage == "zeros":
            data[200:] = bytes(len(data) - 200)
        elif damage == "text":
            data = bytearray(b"not an array")
        elif damage == "shuffled":
            body = np.frombuffer(bytes(data[1024:]), np.uint8).copy()
            data[1024:] = rng.permutation(body).tobytes()
        path.write_bytes(data)
        if damage in ("gone", "folder gone"):
            path.unlink()
    if damage == "folder gone":
        delete_all(repository.root)
        os.rmdir(repository.root / FOLDER)
    after = [pairs(SuffixIndex(repository.root).find(snapshot, query)) for query in queries]
    assert after == before


def test_what_somebody_deletes_is_not_read_on(tmp_path: Path) -> None:
    repository = memory(tmp_path, 9, 6)
    snapshot, index = repository.snapshot(), SuffixIndex(repository.root)
    query = snapshot.tokens(40, 41).ravel().tolist()
    before = pairs(index.find(snapshot, query))
    assert delete_all(repository.root)
    assert pairs(index.find(snapshot, query)) == before
    index.delete()
    assert not list((repository.root / FOLDER).glob("suffix*"))


def test_without_a_place_for_files_it_works_in_memory(tmp_path: Path) -> None:
    repository = memory(tmp_path, 4, 6)
    (repository.root / FOLDER).write_text("in the way")
    snapshot, index = repository.snapshot(), SuffixIndex(repository.root)
    query = snapshot.tokens(30, 31).ravel().tolist()
    assert pairs(index.find(snapshot, query, each=8)) == brute_force(snapshot, query, 8, snapshot.blocks * 32)


@given(segments=st.integers(0, 5000))
def test_few_spans_tile_any_number_of_segments(segments: int) -> None:
    spans = tiling(segments)
    edges = [0, *(span.stop for span in spans)]
    assert [span.start for span in spans] == edges[:-1] and edges[-1] == segments
    sizes = [span.stop - span.start for span in spans]
    assert all(sizes.count(size) <= 7 for size in set(sizes))
    assert all(span.start % (span.stop - span.start) == 0 for span in spans)
    assert all(list(Span(0, size).parts())[-1].stop == size for size in set(sizes))


def test_an_empty_query_or_memory_has_no_matches(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "memory", created=0.0, segment_blocks=32)
    index = SuffixIndex(repository.root)
    assert not len(index.find(repository.snapshot(), [1, 2, 3]).places)
    add(repository, np.arange(40, dtype=np.uint32))
    snapshot = repository.snapshot()
    assert not len(index.find(snapshot, []).places)
    assert not len(index.find(snapshot, [5], stop=0).places)
    assert pairs(index.find(snapshot, [4, 5])) == [(6, 2)]
