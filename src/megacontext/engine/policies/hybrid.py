"""Hybrid: the memory's indexes propose blocks anywhere in the tree; what points to them strongly enough is opened.

A window shows most of a long history as a few gists of high levels, below which no score of an entry reaches. So the indexes
are asked what the newest tokens point to, wherever it lies: where they occurred before (suffixes, also of what stood a few
tokens back, moved on to now), which blocks share their rare words (BM25), which gists are like theirs. Each gives a bounded
number, and a block's worth follows from how strongly it is pointed to. Opening a block that lies deep shows many gists beside
its path, which costs: measured on long histories, weak evidence loses and strong evidence wins a lot (docs/log.md,
2026-11-24). So evidence below a bar counts as nothing, and what nothing points to any more is let go.

A scorer whose unit is nats (a calibrated LensNet) adds its own judgement, of candidates and of the window's blocks alike.

Direction: positive where having a block raw helps by more than it costs. Unit: nats per token over the next interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megacontext.core import BLOCK, FocusScores, Targets
from megacontext.core.node import BoolArray
from megacontext.engine.policies.base import FloatArray, FocusView, IntArray
from megacontext.engine.policies.suffix import readable, went_on
from megacontext.errors import ConfigError


class BlockScorer(Protocol):
    """Whatever tells what having blocks raw is worth, in nats: a calibrated LensNet, or any function of block features."""

    def worth(self, view: FocusView, blocks: IntArray) -> FloatArray:
        """The worth of having ``blocks`` int64 [k] raw, float32 [k]; they may lie anywhere in the tree."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What evidence is worth: nothing up to ``bar``, then ``slope`` nats for each unit beyond it, at most ``most``."""

    bar: float
    slope: float
    most: float = 2.0

    def __call__(self, strength: FloatArray) -> FloatArray:
        """The worth of each strength, float32 of its shape."""
        worth: FloatArray = np.clip(self.slope * (strength - self.bar), 0.0, self.most).astype(np.float32)
        return worth


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """How much each source may propose at a refocus; 0 leaves a source out.

    ``suffixes``, ``words`` and ``gists``: most blocks of each. ``each``: newest matches looked at for each length of a suffix;
    ``skips``: a match may end up to so many tokens before the newest one, and counts that much shorter. ``word_tokens``: newest
    tokens that BM25 looks for. ``length``, ``bm25`` and ``likeness``: what a match of so many tokens, a BM25 score and the
    likeness of gists are worth. ``cost``: nats that a block which nothing points to costs.
    """

    suffixes: int = 24
    words: int = 16
    gists: int = 0
    each: int = 8
    skips: int = 2
    word_tokens: int = 32
    length: Evidence = Evidence(bar=7, slope=0.4)
    bm25: Evidence = Evidence(bar=20, slope=0.1)
    likeness: Evidence = Evidence(bar=0.9, slope=5)
    cost: float = 0.06

    def __post_init__(self) -> None:
        if min(self.suffixes, self.words, self.gists, self.skips, self.cost) < 0:
            raise ConfigError("suffixes, words, gists, skips and cost must be at least 0")
        if min(self.each, self.word_tokens) < 1:
            raise ConfigError("each and word_tokens must be at least 1")


class Hybrid:
    """Open what the indexes point to. ``scorer``, if any, speaks in nats."""

    name = "hybrid"

    def __init__(self, scorer: BlockScorer | None = None, config: HybridConfig | None = None) -> None:
        self._scorer, self.config = scorer, config or HybridConfig()

    def score(self, view: FocusView) -> FocusScores:
        """See ``FocusPolicy.score``; entries of LOD 2 and above score 0 and open through targets."""
        window = view.window
        entries = np.zeros(len(window), dtype=np.float32)
        near = np.flatnonzero((window.lod <= 1) & ~window.timeline.pruned_mask(window.lod, window.index))
        pointed, evidence = self.pointed(view)
        at = window.covering(pointed)
        deep = window.lod[at] > 1
        blocks = np.concatenate([window.index[near], pointed[deep]])
        if not len(blocks) or not len(view.query):
            return FocusScores(entries)
        worth = np.where(self._dispensable(view, blocks), -self.config.cost, 0.0).astype(np.float32)
        if self._scorer is not None:
            worth += self._scorer.worth(view, blocks)
        here, found = np.isin(blocks, pointed), np.searchsorted(pointed, blocks)
        worth[here] += evidence[found[here]]
        entries[near] = worth[: len(near)]
        gains = worth[len(near) :]
        return FocusScores(entries, Targets(pointed[deep][gains > 0], gains[gains > 0]))

    def pointed(self, view: FocusView) -> tuple[IntArray, FloatArray]:
        """Blocks of the window's timeline that evidence above its bar points to, int64 [k], ascending, each once; and what the
        strongest of it is worth, float32 [k]."""
        config, searches, query = self.config, view.searches, view.query
        found = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))]
        if config.suffixes:
            blocks, lengths = self._by_suffix(view)
            found.append((blocks, config.length(lengths.astype(np.float32))))
        if config.words:
            blocks, scores = searches.words(query[-config.word_tokens :], config.words)
            found.append((blocks, config.bm25(scores)))
        if config.gists:
            blocks, scores = searches.gists(query[-BLOCK:], config.gists)
            found.append((blocks, config.likeness(scores)))
        blocks, place = np.unique(np.concatenate([blocks for blocks, _ in found]), return_inverse=True)
        worth = np.zeros(len(blocks), dtype=np.float32)
        np.maximum.at(worth, place, np.concatenate([each for _, each in found]))
        there = (worth > 0) & readable(view, blocks)
        return blocks[there], worth[there]

    def _by_suffix(self, view: FocusView) -> tuple[IntArray, IntArray]:
        """The blocks in which the longest matches went on, and how long these were, less what was skipped."""
        config, stop = self.config, view.window.tail_start
        places, lengths = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for skip in range(min(config.skips + 1, len(view.query))):
            where, length = view.searches.suffixes(view.query[: len(view.query) - skip], config.each, stop * BLOCK)
            places.append(where + skip)
            lengths.append(length - skip)
        blocks, length = went_on(np.concatenate(places), np.concatenate(lengths), stop)
        return blocks[: config.suffixes], length[: config.suffixes]

    def _dispensable(self, view: FocusView, blocks: IntArray) -> BoolArray:
        """Blocks that are not of the document being written, bool [k]."""
        other: BoolArray = view.reader.documents_at(blocks) != view.document
        return other
