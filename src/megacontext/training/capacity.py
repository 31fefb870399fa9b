"""How much could gists carry at all? Vectors optimised for each item on the frozen base, against those of the encoder.

The far context of held-out items is replaced by free vectors, which gradient descent moves to lower the loss of raw tokens
behind them; nothing else learns. Two bounds, both scored on the items' true horizon:

* ``replayed`` is fair: it is optimised on other continuations only (stretches of the far context itself pasted
  behind the gists, and the tail, which every arm reads raw anyway), never on the horizon. What it gains, a perfect
  encoder for this way of reading could gain too.
* ``answer_seeing`` is optimised on the horizon itself, so it shows how far vectors in these slots can steer the
  base at all, and nothing about memory.

Kuratov et al. 2025, https://arxiv.org/abs/2502.13063, measure the capacity of vectors this way. Shapes: n items, R rows of
a batch, N far blocks, g vectors per gist, W numbers of a vector, T raw tokens of a window, H scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from megacontext.core.node import BLOCK
from megacontext.engine.bundle import Bundle
from megacontext.errors import ConfigError
from megacontext.evaluation import arms
from megacontext.evaluation.bootstrap import interval
from megacontext.evaluation.gists import F16, GistBank
from megacontext.evaluation.items import IntArray, Items, draw_items
from megacontext.evaluation.measured import Measured, measure
from megacontext.evaluation.quality import far_for
from megacontext.evaluation.report import Figures, report
from megacontext.evaluation.suite import Source, Stage, finite
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.gist_baselines import MeanPoolGist
from megacontext.models.positions import PositionStrategy, window_ranks
from megacontext.training.free_gists import GistSpace, space_of
from megacontext.training.optimizers import lr_factor

SCHEMA = 1
BOUNDS = ("replayed", "answer_seeing")
PAIRS = (
    ("gist", "drop"),
    ("gist", "swapped"),
    ("replayed", "drop"),
    ("replayed", "replayed_swapped"),
    ("replayed", "gist"),
    ("answer_seeing", "gist"),
)
CURVE = 10
"""Points of a loss curve."""


@dataclass(frozen=True, kw_only=True)
class CapacityConfig:
    """``steps`` of Adam for each item at a peak of ``lr`` (in token RMS), ``batch`` items at a time.

    ``replays`` continuations an item and step, of which ``tail_share`` are its own tail; a replayed stretch is
    ``horizon`` tokens long, and its first ``cue`` tokens are given. ``far`` None: the longest that the base reads raw.
    """

    items: int = 24
    far: int | None = None
    tail: int = 128
    horizon: int = 64
    seed: int = 0
    steps: int = 150
    lr: float = 0.1
    batch: int = 8
    replays: int = 2
    tail_share: float = 0.25
    cue: int = 8

    def __post_init__(self) -> None:
        if min(self.items - 1, self.steps, self.batch, self.replays) < 1 or self.lr <= 0:
            raise ConfigError("capacity needs at least 2 items, and steps, batch, replays and lr above 0")
        if not 0 <= self.tail_share <= 1:
            raise ConfigError(f"tail_share must be a share, not {self.tail_share}")
        if not 0 < self.cue < self.horizon < self.tail:
            raise ConfigError(f"cue ({self.cue}), horizon ({self.horizon}) and tail ({self.tail}) must rise, cue from 1")


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """Raw tokens behind the gists: ``ids`` int64 [R, T], of which those from place ``first`` on are scored.

    R is a multiple of the items asked for, each item's rows together.
    """

    ids: IntArray
    first: int


Draw = Callable[[IntArray, int], Continuations]
"""``(item numbers int64 [n], step)`` → what follows their gists in that step; the same for the same arguments."""


def the_answer(items: Items) -> Draw:
    """The tail and the true horizon, which is scored: it looks at the answer."""

    def draw(rows: IntArray, step: int) -> Continuations:
        return Continuations(ids=items.ids[rows, items.far :], first=items.tail)

    return draw


def replayed(items: Items, config: CapacityConfig) -> Draw:
    """Stretches of the far context pasted behind a part of the tail, and the tail itself; never the horizon."""
    length, before = config.horizon, items.tail - config.horizon

    def one(row: int, step: int, copy: int) -> IntArray:
        ids = items.ids[row, : items.context]
        rng = np.random.default_rng((config.seed, row, step, copy, 0x2E9A))
        if rng.random() < config.tail_share:
            return ids[items.far :]
        start = int(rng.integers(0, items.far - length + 1))
        return np.concatenate([ids[items.context - before :], ids[start : start + length]])

    def draw(rows: IntArray, step: int) -> Continuations:
        drawn = [one(int(row), step, copy) for row in rows for copy in range(config.replays)]
        return Continuations(ids=np.stack(drawn), first=before + config.cue)

    return draw


def window_nll(space: GistSpace, gists: Tensor, following: Continuations, strategy: PositionStrategy, base: BaseLM) -> Tensor:
    """NLL (nats) float32 [R, T − first] of the scored tokens behind gists [R, N, g, W]; positions as in a window.

    Differentiable with respect to the gists.
    """
    ids = torch.from_numpy(following.ids).to(base.device)
    start, stop = _spans(gists.shape[1], gists.shape[2], following.ids.shape[1])
    places = torch.from_numpy(strategy(start, stop, base.context_length)[:-1])
    logits = space.logits(gists, ids[:, :-1], places, ids.shape[1] - following.first)
    return nn.functional.cross_entropy(logits.mT, ids[:, following.first :], reduction="none")


def _spans(blocks: int, vectors: int, raw: int) -> tuple[IntArray, IntArray]:
    """First and end token int64 [N·g + T] of each slot: the vectors of a block share its tokens."""
    edges = (np.arange(blocks)[:, None] * BLOCK + np.arange(vectors + 1) * BLOCK // vectors).astype(np.int64)
    places = blocks * BLOCK + np.arange(raw, dtype=np.int64)
    return np.concatenate([edges[:, :-1].ravel(), places]), np.concatenate([edges[:, 1:].ravel(), places + 1])


def optimise(
    base: BaseLM,
    encoder: GistEncoder,
    start: F16,
    draw: Draw,
    config: CapacityConfig,
    *,
    progress: Callable[[], None] = lambda: None,
) -> tuple[F16, list[float]]:
    """Vectors [n, N, g, W] that lower the loss of what ``draw`` gives, as they would be stored, and the loss curve.

    ``start`` float16 [n, N, g, W] of ``encoder`` is where they begin; they get no larger than its gists
    (``training.free_gists``).
    The base's weights do not change, items do not influence each other. Deterministic. ``progress`` is called once
    a step of a batch.
    """
    found, curves = [], []
    space = space_of(base, encoder, torch.from_numpy(start.astype(np.float32)).to(base.device))
    strategy = window_ranks(encoder)
    for first in range(0, len(start), config.batch):
        rows = np.arange(first, min(first + config.batch, len(start)))
        vectors, curve = _optimise_batch(base, space, strategy, start[rows], rows, draw, config, progress)
        found.append(vectors)
        curves.append(curve * len(rows))
    mean = np.sum(curves, axis=0) / len(start)
    return np.concatenate(found), [float(value) for value in mean]


def _optimise_batch(
    base: BaseLM,
    space: GistSpace,
    strategy: PositionStrategy,
    start: F16,
    rows: IntArray,
    draw: Draw,
    config: CapacityConfig,
    progress: Callable[[], None],
) -> tuple[F16, npt.NDArray[np.float64]]:
    free = nn.Parameter(space.free(torch.from_numpy(start.astype(np.float32)).to(base.device)))
    optimizer = torch.optim.Adam([free], lr=config.lr, betas=(0.9, 0.95))
    losses = np.zeros(config.steps)
    for step in range(config.steps):
        following = draw(rows, step)
        gists = space.gists(free).repeat_interleave(len(following.ids) // len(rows), dim=0)
        nll = window_nll(space, gists, following, strategy, base)
        # A sum over items of their own means: each gets the gradient that it would get alone.
        loss = nll.mean(dim=1).view(len(rows), -1).mean(dim=1).sum()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.param_groups[0]["lr"] = config.lr * lr_factor(step, steps=config.steps, warmup=1, decay_from=0.3)
        optimizer.step()
        losses[step] = float(loss.detach()) / len(rows)
        progress()
    final = space.gists(free.detach())
    curve = np.array([part.mean() for part in np.array_split(losses, min(CURVE, config.steps))])
    return final.cpu().numpy().astype(np.float16), curve


def run(bundle: Bundle, source: Source, config: CapacityConfig, stage: Stage) -> dict[str, Any]:
    """Both bounds, the encoder, ``drop`` and ``full`` on the same held-out items, as plain data.

    ``reached``: the share of a bound's gain over ``drop`` that the encoder's gists have, not judged where that gain's
    interval is not clear of zero. Without a GistNet, the mean of each block's embeddings stands in for it.
    """
    base = bundle.base
    encoder: GistEncoder = bundle.gists or MeanPoolGist(base.width, base.embedding_rms)
    items = _items(source, base, config)
    bank = GistBank(items, base, encoder)
    blocks = items.far // BLOCK
    start = np.stack([bank(row)[:blocks] for row in range(len(items))])
    draws = {"replayed": replayed(items, config), "answer_seeing": the_answer(items)}
    vectors: dict[str, F16] = {}
    curves: dict[str, list[float]] = {}
    for name, draw in draws.items():
        with stage(f"optimising, {name}", config.steps * -(-len(items) // config.batch)) as count:
            vectors[name], curves[name] = optimise(base, encoder, start, draw, config, progress=count)
    with stage("items", len(items)) as count:
        measured = measure(base, encoder, items, _arms(items, bank, vectors), progress=count, bank=bank)
    facts = {
        **asdict(config),
        **{"far": items.far, "items": len(items), "vectors": encoder.vectors, "source": source.name},
        **{"documents": len(np.unique(items.group)), "base": base.fingerprint},
        "gistnet": bundle.gists.fingerprint if bundle.gists is not None else None,
    }
    result = {**report(measured, seed=config.seed, pairs=PAIRS), "reached": _reached(measured, config.seed), "curves": curves}
    cleaned: dict[str, Any] = finite({"schema": SCHEMA, "kind": "capacity", "config": facts, **result})
    return cleaned


def _items(source: Source, base: BaseLM, config: CapacityConfig) -> Items:
    far = config.far or far_for(base, tail=config.tail, horizon=config.horizon)
    return draw_items(
        source.histories,
        far=far,
        tail=config.tail,
        horizon=config.horizon,
        count=config.items,
        seed=config.seed,
        closed_by=source.closed_by,
    )


def _arms(items: Items, bank: GistBank, vectors: Mapping[str, F16]) -> dict[str, arms.Arm]:
    chosen: dict[str, arms.Arm] = {
        "drop": arms.recency(0),
        "gist": arms.gist,
        "swapped": arms.with_gists(lambda item: bank(items.other(item.row))),
        "replayed_swapped": arms.with_gists(lambda item: vectors["replayed"][items.other(item.row)]),
    }
    if items.context + items.horizon <= bank.base.context_length:
        chosen["full"] = arms.full
    return chosen | {name: _made_for_it(vectors[name]) for name in BOUNDS}


def _made_for_it(vectors: F16) -> arms.Arm:
    return arms.with_gists(lambda item: vectors[item.row])


def _reached(measured: Measured, seed: int) -> dict[str, Any]:
    """The share of each bound's gain over ``drop`` that the encoder reaches, where that gain is clear of zero at all."""
    figures = Figures(measured, seed=seed)

    def share(bound: str, mask: str, ends: tuple[float, float]) -> dict[str, Any]:
        if not ends[0] > 0:
            return {"judged": False}
        values = figures.ratio(("drop", "gist"), ("drop", bound), mask=mask)
        return {"judged": True, "share": float(values[0]), "share_ci": interval(values[1:])}

    found = {}
    for bound in BOUNDS:
        gain = figures.difference("drop", bound)
        found[bound] = {
            **share(bound, "all", gain["ci"]),
            "far_copy": share(bound, "far_copy", gain["far_copy"]["ci"]),
        }
    return found
