"""Suffix and hybrid focus: what was planted far below high gists is opened, and only what the reader may see."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from megacontext.core import EditHistory, WorkingContext
from megacontext.engine.focus import FOCUS_DEFAULTS, refocus
from megacontext.engine.policies import Evidence, FocusPolicy, FocusView, Hybrid, HybridConfig, Searches, Suffix, no_search
from megacontext.engine.policies.suffix import went_on
from megacontext.errors import ConfigError
from megacontext.index import disposable
from megacontext.index.fulltext import FullTextIndex
from megacontext.index.suffix import SuffixIndex
from megacontext.storage import Repository, Snapshot

BLOCKS = 1200
IntArray = np.ndarray


@pytest.fixture(autouse=True, scope="module")
def _quick_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(os, "fdatasync", lambda descriptor: None)
        patch.setattr(disposable, "SYNCHRONOUS", "OFF")
        yield


class Eager:
    """Wants every block, the later the more; remembers what it was asked about."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def worth(self, view: FocusView, blocks: IntArray) -> IntArray:
        self.asked = blocks.tolist()
        return (1 + blocks / (1 + view.window.timeline.blocks)).astype(np.float32)


def write(root: Path, ids: np.ndarray) -> Repository:
    """Documents of 100 blocks."""
    repository = Repository.create(root, created=1.0, segment_blocks=32)
    with repository.writer() as writer:
        for start in range(0, len(ids), 100):
            writer.begin_document(source=f"document {start}", ingested_at=1.0)
            writer.append_blocks(ids[start : start + 100])
            writer.end_document()
        writer.commit(time=1.0)
    return repository


def view_of(snapshot: Snapshot, root: Path, query: np.ndarray, budget: int = 640) -> FocusView:
    words, suffixes = FullTextIndex(root), SuffixIndex(root)
    found = Searches(
        words=lambda query, limit: words.search(snapshot, query, limit),
        suffixes=lambda query, each, stop: suffixes.find(snapshot, query, each=each, stop=stop),
    )
    window = WorkingContext.coarsest(snapshot.timeline(), budget, 64)
    return FocusView(window=window, reader=snapshot, query=query, searches=found)


def opened(view: FocusView, policy: FocusPolicy) -> list[int]:
    """The blocks that a refocus makes raw."""
    step = refocus(view, policy, replace(FOCUS_DEFAULTS, cooldown=0), EditHistory(), unlimited=True)
    before = set(view.window.index[view.window.lod == 0].tolist())
    return sorted(set(step.after.index[step.after.lod == 0].tolist()) - before)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, np.ndarray]:
    """Random words; what stands in the middle of block 37 stands nowhere else."""
    ids = np.random.default_rng(1).integers(0, 5000, (BLOCKS, 32)).astype(np.uint32)
    ids[37, 8:20] = np.arange(6000, 6012)
    return write(tmp_path_factory.mktemp("planted") / "m", ids), ids


def test_the_suffix_rule_opens_what_lies_below_a_high_gist(planted: tuple[Repository, np.ndarray]) -> None:
    repository, ids = planted
    view = view_of(repository.snapshot(), repository.root, ids[37, 6:16].astype(np.int64))
    assert view.window.lod[view.window.covering(np.array([37]))[0]] >= 3
    assert opened(view, Suffix()) == [37]
    other = replace(view, query=np.arange(7000, 7010))
    assert opened(other, Suffix()) == []


def test_the_longer_match_and_of_equal_ones_the_newer_scores_higher() -> None:
    blocks, lengths = went_on(np.array([40, 9 * 32 + 30, 100]), np.array([2, 5, 5]), 11)
    assert blocks.tolist() == [10, 9, 3, 1] and lengths.tolist() == [5, 5, 5, 2]
    assert went_on(np.array([40]), np.array([2]), 1)[0].tolist() == []


@pytest.mark.parametrize(
    ("config", "query", "finds"),
    [
        (HybridConfig(words=0), slice(8, 16), True),
        (HybridConfig(suffixes=0), slice(8, 16), True),
        (HybridConfig(suffixes=0, words=0), slice(8, 16), False),
    ],
)
def test_each_source_finds_the_planted_block(
    planted: tuple[Repository, np.ndarray], config: HybridConfig, query: slice, finds: bool
) -> None:
    repository, ids = planted
    view = view_of(repository.snapshot(), repository.root, ids[37, query].astype(np.int64))
    assert Hybrid(None, config).pointed(view)[0].tolist() == [37] * finds
    assert opened(view, Hybrid(None, config)) == [37] * finds


def test_a_match_may_end_a_few_tokens_back(planted: tuple[Repository, np.ndarray]) -> None:
    repository, ids = planted
    query = np.append(ids[37, 8:18], [9999, 9998]).astype(np.int64)
    view = view_of(repository.snapshot(), repository.root, query)
    assert opened(view, Hybrid(None, HybridConfig(words=0, skips=2))) == [37]
    assert opened(view, Hybrid(None, HybridConfig(words=0, skips=1))) == []


def test_weak_evidence_opens_nothing(planted: tuple[Repository, np.ndarray]) -> None:
    repository, ids = planted
    query = np.append(np.arange(7000, 7010), ids[37, 8:15]).astype(np.int64)
    view = view_of(repository.snapshot(), repository.root, query)
    assert opened(view, Hybrid(None, HybridConfig(words=0))) == []
    assert opened(view, Hybrid(None, HybridConfig(words=0, length=Evidence(bar=6, slope=0.4)))) == [37]
    assert opened(view, Suffix()) == [] and opened(view, Suffix(shortest=7)) == [37]


def test_what_nothing_points_to_any_more_is_let_go(planted: tuple[Repository, np.ndarray]) -> None:
    repository, ids = planted
    view = view_of(repository.snapshot(), repository.root, ids[37, 8:16].astype(np.int64))
    first = refocus(view, Hybrid(), FOCUS_DEFAULTS, EditHistory(), unlimited=True)
    assert 37 in first.after.index[first.after.lod == 0]
    later = replace(view, window=first.after, query=np.arange(7000, 7010))
    then = refocus(later, Hybrid(), FOCUS_DEFAULTS, first.history, unlimited=True)
    assert 37 not in then.after.index[then.after.lod == 0]
    again = refocus(replace(later, window=then.after), Hybrid(), FOCUS_DEFAULTS, then.history, unlimited=True)
    assert len(again.after) < len(then.after)


def test_gist_search_is_a_source_too(planted: tuple[Repository, np.ndarray]) -> None:
    repository, ids = planted
    view = view_of(repository.snapshot(), repository.root, ids[37, 8:16].astype(np.int64))
    found = Searches(gists=lambda query, limit: (np.arange(limit) * 7, np.ones(limit, np.float32)))
    view = replace(view, searches=found)
    assert Hybrid(None, HybridConfig(gists=5)).pointed(view)[0].tolist() == [0, 7, 14, 21, 28]
    assert not len(Hybrid().pointed(replace(view, searches=Searches(words=no_search)))[0])


def test_entries_and_candidates_are_scored_together(planted: tuple[Repository, np.ndarray]) -> None:
    repository, ids = planted
    view = view_of(repository.snapshot(), repository.root, ids[37, 8:16].astype(np.int64))
    scorer = Eager()
    scores = Hybrid(scorer).score(view)
    window = view.window
    near = window.lod <= 1
    assert scorer.asked == [*window.index[near].tolist(), 37]
    # Nothing of the history is of the document being written: all of it costs a little.
    assert (scores.entries[near] > 0.9).all() and not scores.entries[~near].any()
    assert scores.targets is not None and scores.targets.block.tolist() == [37]
    alone = Hybrid().score(view)
    assert alone.targets is not None and scores.targets.gain[0] > alone.targets.gain[0] > 0
    assert (alone.entries[near] == np.float32(-HybridConfig().cost)).all()


def test_settings_are_checked() -> None:
    for wrong in ({"words": -1}, {"each": 0}, {"skips": -2}, {"word_tokens": 0}):
        with pytest.raises(ConfigError):
            HybridConfig(**wrong)


@settings(derandomize=True, deadline=None, max_examples=3, phases=[Phase.generate])
@given(
    seed=st.integers(0, 999),
    spans=st.lists(st.tuples(st.integers(0, 239), st.integers(1, 60)), min_size=1, max_size=3),
)
def test_what_is_denied_is_never_proposed_and_makes_no_difference(seed: int, spans: list[tuple[int, int]]) -> None:
    """A canary: the denied blocks are full of just what is looked for."""
    rng = np.random.default_rng(seed)
    one = rng.integers(0, 40, (240, 32)).astype(np.uint32)
    denied = np.zeros(240, bool)
    for start, length in spans:
        denied[start : start + length] = True
    query = rng.integers(0, 40, 12).astype(np.int64)
    config = HybridConfig(length=Evidence(bar=0, slope=1), bm25=Evidence(bar=0, slope=1))
    canary = np.resize(query, (240, 32)).astype(np.uint32)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, ids in (("one", one), ("other", np.where(denied[:, None], canary, one))):
            repository = write(Path(folder) / name, ids)
            for start, length in spans:
                at = start, min(start + length, 240)
                repository.label(lambda _, labels, span=at: labels.add(["secret"], *span))
            reader = Repository.open(repository.root, deny=["secret"])
            snapshot = reader.snapshot()
            if not snapshot.timeline().present(0, 240).size:
                return
            view = view_of(snapshot, repository.root, query, budget=1400)
            policies: list[FocusPolicy] = [Suffix(shortest=1), Hybrid(Eager(), config)]
            steps = [refocus(view, policy, FOCUS_DEFAULTS, EditHistory(), unlimited=True) for policy in policies]
            for step in steps:
                targets = step.scores.targets
                assert targets is not None and not denied[targets.block].any()
                assert not denied[step.after.index[step.after.lod <= 1]].any()
            found.append([(step.after.lod.tolist(), step.after.index.tolist(), step.scores.entries.tolist()) for step in steps])
    assert found[0] == found[1]
