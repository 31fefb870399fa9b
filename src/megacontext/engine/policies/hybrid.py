"""Hybrid: the memory's indexes propose blocks anywhere in the tree, a scorer judges them and the window on one footing.

A window shows most of a long history as a few gists of high levels, below which no score reaches. So the indexes are asked
what the newest tokens point to, wherever it lies: where they occurred before (suffixes, also of what stood a few tokens
back, moved on to now), which blocks share their rare words (BM25), which gists are like theirs. Each gives a bounded number.
All candidates and all entries of the window then get their worth from one scorer, and what is worth opening below a high gist
becomes a target.

Direction: positive where having a block raw helps by more than the threshold; the unit is the scorer's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megacontext.core import BLOCK, FocusScores, Targets
from megacontext.engine.policies.base import FloatArray, FocusView, IntArray
from megacontext.engine.policies.suffix import went_on
from megacontext.errors import ConfigError


class BlockScorer(Protocol):
    """Whatever tells what having blocks raw is worth: a LensNet, or any function of block features."""

    def worth(self, view: FocusView, blocks: IntArray) -> FloatArray:
        """The worth of having ``blocks`` int64 [k] raw, float32 [k]; they may lie anywhere in the tree."""


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """How much each source may propose at a refocus; 0 leaves a source out.

    ``suffixes``, ``words`` and ``gists``: most blocks of each. ``each``: newest matches looked at for each length of a suffix;
    ``shortest``: tokens that a match has at least; ``skips``: a match may end up to so many tokens before the newest one, then
    with at least ``shortest_skipped``. ``word_tokens``: newest tokens that BM25 looks for.
    """

    suffixes: int = 24
    words: int = 16
    gists: int = 0
    each: int = 8
    shortest: int = 2
    skips: int = 2
    shortest_skipped: int = 3
    word_tokens: int = 32

    def __post_init__(self) -> None:
        if min(self.suffixes, self.words, self.gists, self.skips) < 0:
            raise ConfigError("suffixes, words, gists and skips must be at least 0")
        if min(self.each, self.shortest, self.shortest_skipped, self.word_tokens) < 1:
            raise ConfigError("each, shortest, shortest_skipped and word_tokens must be at least 1")


class Hybrid:
    """Score blocks with ``scorer``, wherever the indexes point. ``centred``: the scorer tells blocks of one moment apart but
    not whether any is worth its place, so the median of the window's is taken off."""

    name = "hybrid"

    def __init__(self, scorer: BlockScorer, config: HybridConfig | None = None, *, centred: bool = True) -> None:
        self._scorer, self.config, self._centred = scorer, config or HybridConfig(), centred

    def score(self, view: FocusView) -> FocusScores:
        """See ``FocusPolicy.score``; entries of LOD 2 and above score 0 and open through targets."""
        window = view.window
        entries = np.zeros(len(window), dtype=np.float32)
        near = np.flatnonzero((window.lod <= 1) & ~window.timeline.pruned_mask(window.lod, window.index))
        deep = self.candidates(view)
        blocks = np.concatenate([window.index[near], deep])
        if not len(blocks) or not len(view.query):
            return FocusScores(entries)
        worth = self._scorer.worth(view, blocks)
        if self._centred and len(near):
            worth = np.clip(worth - np.median(worth[: len(near)]), -1, 1).astype(np.float32)
        entries[near] = worth[: len(near)]
        gains = worth[len(near) :]
        return FocusScores(entries, Targets(deep[gains > 0], gains[gains > 0]))

    def candidates(self, view: FocusView) -> IntArray:
        """Blocks below gists of LOD 2 and above that any source proposes: int64 [k], ascending, each once."""
        config, searches, query = self.config, view.searches, view.query
        found = [self._by_suffix(view)] if config.suffixes else []
        if config.words:
            found.append(searches.words(query[-config.word_tokens :], config.words)[0])
        if config.gists:
            found.append(searches.gists(query[-BLOCK:], config.gists)[0])
        blocks = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))
        window = view.window
        at = window.covering(blocks)
        below = (at >= 0) & (window.lod[at] > 1)
        blocks = blocks[below]
        raw = np.zeros(len(blocks), dtype=np.int8)
        return blocks[~(window.timeline.absent_mask(raw, blocks) | window.timeline.pruned_mask(raw, blocks))]

    def _by_suffix(self, view: FocusView) -> IntArray:
        config, stop = self.config, view.window.tail_start
        places, lengths = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for skip in range(min(config.skips + 1, len(view.query))):
            query = view.query[: len(view.query) - skip]
            where, length = view.searches.suffixes(query, config.each, stop * BLOCK)
            long = length >= (config.shortest_skipped if skip else config.shortest)
            places.append(where[long] + skip)
            lengths.append(length[long] - skip)
        blocks, _ = went_on(np.concatenate(places), np.concatenate(lengths), stop)
        return blocks[: config.suffixes]
