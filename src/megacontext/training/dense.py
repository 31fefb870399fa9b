"""``train dense``: a bi-encoder that finds the block that holds what comes next, learned from text alone.

At a decision point the newest tokens are the query, and the blocks before them the candidates. How much of the *following*
tokens a block holds (token pairs, weighed by rarity) says how good it would have been, and the bi-encoder learns that
distribution. No pass of the base is needed: the strongest dense retriever that the same data and less compute give.

Shapes: B windows, n far blocks, q query tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from megacontext.core import BLOCK
from megacontext.evaluation.items import Items, draw_items
from megacontext.models import BaseLM
from megacontext.models.bi_encoder import BiEncoder, BiEncoderConfig
from megacontext.training.config import RunConfig, WindowsConfig
from megacontext.training.corpus import Split
from megacontext.training.dataset import load_split, surprisal

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class DenseConfig(RunConfig):
    """``interval``: following tokens that count; ``items``: windows that are drawn from, ``batch`` of them a step."""

    base: Path
    dataset: Path
    hidden: int = Field(default=48, ge=1)
    query: int = Field(default=32, ge=1)
    interval: int = Field(default=16, ge=1)
    batch: int = Field(default=16, ge=1)
    items: int = Field(default=4000, ge=1)
    validation_items: int = Field(default=200, ge=1)
    windows: WindowsConfig = WindowsConfig()


class DenseTask:
    """Train a bi-encoder for a frozen base; what is exported is the best on validation windows."""

    def __init__(self, config: DenseConfig) -> None:
        self._config = config
        self._base = BaseLM.from_pretrained(config.base, dtype=torch.float32)
        torch.manual_seed(config.seed)
        self._rarity = surprisal(load_split(config.dataset, "train"), self._base.vocab_size)
        self._train = self._items("train", config.items)
        self._validation = self._items("validation", config.validation_items)
        shape = BiEncoderConfig(
            width=self._base.width, hidden=config.hidden, query=config.query, base_fingerprint=self._base.fingerprint
        )
        self._net = BiEncoder(shape)
        self._best, self._best_state = -np.inf, self._copy()

    @property
    def module(self) -> nn.Module:
        """The bi-encoder."""
        return self._net

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy to the shares of what follows that the blocks hold."""
        items, config = self._train, self._config
        rows = rng.integers(len(items), size=config.batch)
        cuts = items.context + rng.integers(0, items.horizon - config.interval + 1, size=config.batch)
        held = np.stack([self._held(items, row, cut) for row, cut in zip(rows.tolist(), cuts.tolist(), strict=True)])
        told = held.sum(axis=1) > 0
        target = torch.from_numpy(held / np.maximum(held.sum(axis=1, keepdims=True), 1e-6))
        nats = -(target * self._scores(items, rows, cuts).log_softmax(dim=1)).sum(dim=1)
        loss = nats[torch.from_numpy(told)].sum() / max(1, int(told.sum()))
        return loss, {}

    def evaluate(self) -> dict[str, float]:
        """Share of what the best four blocks hold that the four best by likeness hold, and by recency."""
        items = self._validation
        rows, cuts = np.arange(len(items)), np.full(len(items), items.context)
        held = np.stack([self._held(items, row, cut) for row, cut in zip(rows.tolist(), cuts.tolist(), strict=True)])
        with torch.no_grad():
            parts = [self._scores(items, part, cuts[part]).numpy() for part in np.array_split(rows, max(1, len(rows) // 32))]
        recency = np.broadcast_to(np.arange(held.shape[1]), held.shape)
        best = _top(held, held)
        share = _top(np.concatenate(parts), held) / best
        if share > self._best:
            self._best, self._best_state = share, self._copy()
        return {"held/dense": share, "held/recency": _top(recency, held) / best, "held/best": float(self._best)}

    def export(self, folder: Path) -> None:
        """Write the bi-encoder as it was at its best, in half precision."""
        net = BiEncoder(self._net.config)
        net.load_state_dict(self._best_state)
        net.half().save_pretrained(folder)

    def _items(self, split: Split, count: int) -> Items:
        w = self._config.windows
        histories = load_split(self._config.dataset, split).histories()
        return draw_items(histories, far=w.far, tail=w.tail, horizon=w.horizon, count=count, seed=self._config.seed + 2)

    def _scores(self, items: Items, rows: IntArray, cuts: IntArray) -> Tensor:
        blocks = torch.from_numpy(items.ids[rows, : items.far].reshape(len(rows) * (items.far // BLOCK), BLOCK))
        query = np.stack([items.ids[row, cut - self._config.query : cut] for row, cut in zip(rows, cuts, strict=True)])
        embeds = self._base.embed(blocks).detach().reshape(len(rows), -1, BLOCK, self._base.width)
        scores: Tensor = self._net(embeds, self._base.embed(torch.from_numpy(query)).detach())
        return scores

    def _held(self, items: Items, row: int, cut: int) -> FloatArray:
        ids = items.ids[row]
        blocks = ids[: items.far].reshape(-1, BLOCK)
        return held_pairs(blocks, ids[cut - 1 : cut + self._config.interval], self._rarity)

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._net.state_dict().items()}


def held_pairs(blocks: IntArray, following: IntArray, rarity: FloatArray) -> FloatArray:
    """How many nats of the pairs of neighbours in ``following`` int64 [k] each of ``blocks`` [n, 32] holds: float32 [n].

    A pair counts with the smaller ``rarity`` [V] of its two tokens, once.
    """
    scale = len(rarity)
    wanted = np.unique(following[:-1] * scale + following[1:])
    pairs = blocks[:, :-1] * scale + blocks[:, 1:]
    weight = np.minimum(rarity[wanted // scale], rarity[wanted % scale])
    found = np.stack([(pairs == pair).any(axis=1) for pair in wanted], axis=1)
    result: FloatArray = (found * weight).sum(axis=1).astype(np.float32)
    return result


def _top(scores: npt.NDArray[np.generic], held: FloatArray, most: int = 4) -> float:
    order = np.argsort(-np.asarray(scores, np.float64), axis=1, kind="stable")[:, :most]
    return float(np.take_along_axis(held, order, axis=1).sum())
