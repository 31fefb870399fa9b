"""Ways to choose which far blocks are read raw: the rules that people deploy today, each seeing only what came before.

Direction: the higher a block's score, the sooner it is read; ties go to the newest block. Shapes: k far blocks, q query tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from megacontext.core import FocusScores
from megacontext.engine.evidence import suffix_runs
from megacontext.engine.policies import FocusView
from megacontext.evaluation.arms import QUERY, Choice, Item
from megacontext.evaluation.gists import blocks_of
from megacontext.evaluation.items import IntArray
from megacontext.index.bm25 import Bm25Config, block_counts, inverse_frequency, scores
from megacontext.models import BaseLM
from megacontext.models.bi_encoder import BiEncoder

FloatArray = npt.NDArray[np.float64]
BM25_QUERY = 8
"""Newest tokens that BM25 is asked with: few, since need is bursty; not tuned on this base."""
COSINE_TAIL = 32


Rule = Callable[[IntArray, IntArray], FloatArray]


def best(score: Rule) -> Choice:
    """The blocks with the highest ``score(blocks int64 [k, 32], query int64 [q]) → [k]``."""

    def choose(item: Item, at: int, most: int) -> IntArray:
        seen = item.context + at
        found = score(blocks_of(item.ids[: item.far]), item.ids[max(0, seen - QUERY) : seen])
        order = np.lexsort((np.arange(item.blocks), found))[::-1]
        return np.sort(order[:most])

    return choose


def longest_suffix(blocks: IntArray, query: IntArray) -> FloatArray:
    """How many of the newest tokens a block holds in a row, with something behind them to copy.

    The strongest cheap rule on code: what followed these tokens before is likely to follow again.
    """
    return np.asarray(suffix_runs(blocks, query).max(axis=1), np.float64)


def bm25(blocks: IntArray, query: IntArray) -> FloatArray:
    """BM25 (Robertson & Zaragoza 2009) of the newest tokens among the blocks of the far context."""
    ids, fill = blocks.astype(np.uint32), np.full(len(blocks), blocks.shape[1], np.uint8)
    terms = np.unique(query[-BM25_QUERY:]).astype(np.uint32)
    weights = inverse_frequency(len(blocks), block_counts(ids, fill, terms))
    return scores(ids, fill, terms, weights, Bm25Config())


def dense(encoder: BiEncoder, base: BaseLM) -> Rule:
    """Likeness of block and query by a bi-encoder that was trained for it."""

    def score(blocks: IntArray, query: IntArray) -> FloatArray:
        with torch.no_grad():
            embeds = [base.embed(torch.from_numpy(np.ascontiguousarray(ids))).float() for ids in (blocks, query[None])]
            found = encoder(embeds[0][None], embeds[1])
        return np.asarray(found[0].double().cpu().numpy(), np.float64)

    return score


class Cosine:
    """Cosine between the mean embedding of a block and that of the newest tokens, both about the mean of all blocks.

    Positive: opened; the median is zero, as LensNet's scores have it.
    """

    name = "cosine"

    def __init__(self, base: BaseLM) -> None:
        self._base = base

    def score(self, view: FocusView) -> FocusScores:
        """See ``FocusPolicy.score``; entries of level 2 and above score 0."""
        window = view.window
        result = np.zeros(len(window), np.float32)
        near = np.flatnonzero(window.lod <= 1)
        if not len(near) or not len(view.query):
            return FocusScores(result)
        ids = view.reader.tokens_at(window.index[near]).astype(np.int64)
        means = [self._mean(each) for each in (ids, view.query[None, -COSINE_TAIL:])]
        centre = means[0].mean(dim=0)
        likeness = torch.nn.functional.cosine_similarity(means[0] - centre, means[1] - centre).numpy()
        result[near] = np.clip(likeness - np.median(likeness), -1, 1)
        return FocusScores(result)

    def _mean(self, ids: IntArray) -> torch.Tensor:
        with torch.no_grad():
            return self._base.embed(torch.from_numpy(ids)).float().mean(dim=1).cpu()
