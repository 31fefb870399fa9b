"""Training windows from slices whose full-context teacher is kept on disk: what is learned from is computed once.

The context of a slice stands as raw and gisted spans, by a random pattern or a stage of a curriculum (shrinking budgets), and
its horizon is scored against the same cached teacher every time. Filling inside a slice is left out, as the teacher
left it out.

Shapes: B rows, N blocks of context, H tokens of horizon, T = (N + ⌈H/32⌉)·32, n slots, d width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from megacontext.core.node import BLOCK
from megacontext.engine.substitution import Pattern, draw_pattern, slot_positions
from megacontext.errors import ConfigError
from megacontext.models import BaseLM, GistNet
from megacontext.training.batches import Batch, IntArray, far_weight, gist_pool, stage_pattern
from megacontext.training.config import MixConfig, TeacherConfig
from megacontext.training.curriculum import Stage
from megacontext.training.progress import bar
from megacontext.training.slices import load_slices
from megacontext.training.teacher import teacher_cache


class Replay:
    """The training slices of a ``TeacherConfig`` and their teacher; what the cache lacks is computed on construction.

    DatasetError where there are no slices, ConfigError where they leave no far context before ``tail`` blocks or do not
    fit the base, ModelMismatch where the cache belongs to another base or other slices.
    """

    def __init__(self, config: TeacherConfig, base: BaseLM, *, tail: int, quiet: bool = True) -> None:
        self._slices, self._base, self._tail = load_slices(config.slices, "train"), base, tail
        self._far = self._slices.ids.shape[1] - tail
        if self._far < 1:
            raise ConfigError(
                f"slices of {self._slices.ids.shape[1]} blocks leave no far context before a tail of {tail}: lower mix.tail"
            )
        with bar(quiet=quiet) as progress:
            line = progress.add_task("teacher", total=len(self._slices))
            self._teacher = teacher_cache(
                self._slices,
                base,
                config.cache,
                k=config.top,
                progress=lambda count: progress.update(line, advance=count),
            )

    def draw(self, gistnet: GistNet, rng: np.random.Generator, mix: MixConfig, stage: Stage | None = None) -> Batch:
        """Random slices behind a random pattern, or one as ``stage`` has it but for the length of the far context."""
        rows = np.sort(rng.integers(len(self._slices), size=mix.rows))
        horizon = self._slices.horizon.shape[1]
        raw = self._tail + -(-horizon // BLOCK)
        if stage is None:
            pattern = draw_pattern(rng, far=self._far, tail=raw, spans=0, all_gists=mix.all_gists)
        else:
            pattern = stage_pattern(replace(stage, far=self._far), rng, tail=raw)
        return self._batch(gistnet, rows, mix, pattern)

    def _batch(self, gistnet: GistNet, rows: IntArray, mix: MixConfig, pattern: Pattern) -> Batch:
        base, horizon = self._base, self._slices.horizon.shape[1]
        ids, live = (each.to(base.device) for each in self._tokens(rows, pattern.tokens))
        embeds = base.embed(ids)
        pool, gists = gist_pool(pattern, embeds, gistnet, live)
        index, positions, valid = packed_slots(
            pattern, live.cpu(), base.context_length, vectors=gistnet.vectors, stride=gistnet.config.position_stride
        )

        def forward() -> Tensor:
            slots = pool.gather(1, index[:, :-1, None].to(pool.device).expand(-1, -1, pool.shape[2]))
            where, shown = positions[:, :-1].to(pool.device), valid[:, :-1].to(pool.device)
            return base.forward(slots, where, shown, logits_from=slots.shape[1] - horizon).logits

        first = (self._far + self._tail) * BLOCK
        scored = torch.arange(first, first + horizon)
        return Batch(
            base=base,
            ids=ids,
            embeds=embeds,
            gisted=pattern.encoded,
            gists=gists,
            span=pattern.span,
            live=live,
            scored=scored,
            columns=torch.arange(horizon),
            forward=forward,
            weight=far_weight(mix, ids, pattern, scored, live),
            teacher=self._teacher.top(rows, device=base.device),
        )

    def _tokens(self, rows: IntArray, tokens: int) -> tuple[Tensor, Tensor]:
        """Context and horizon, int64 [B, T], and what of it is no filling, bool [B, T]."""
        contexts, horizons = self._slices.ids[rows].astype(np.int64), self._slices.horizon[rows].astype(np.int64)
        ids = np.zeros((len(rows), tokens), dtype=np.int64)
        live = np.zeros(ids.shape, dtype=np.bool_)
        context, stop = contexts.shape[1] * BLOCK, contexts.shape[1] * BLOCK + horizons.shape[1]
        ids[:, :context], ids[:, context:stop] = contexts.reshape(len(rows), -1), horizons
        live[:, :context] = (np.arange(BLOCK) < self._slices.fill[rows][..., None]).reshape(len(rows), -1)
        live[:, context:stop] = True
        return torch.from_numpy(ids), torch.from_numpy(live)


def packed_slots(
    pattern: Pattern, live: Tensor, context_length: int, *, vectors: int = 1, stride: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Pool indices int64, window positions int64 and validity bool of the slots of rows with filling, each [B, n].

    ``live`` bool [B, T]. What is shown stands flush right; the filling in front of it is not valid, and a gist of nothing but
    filling is filling.
    """
    index, start, stop, _ = pattern.slots(vectors)
    before = np.concatenate([np.zeros((len(live), 1), dtype=np.int64), np.cumsum(live.numpy(), axis=1)], axis=1)
    shown = before[:, stop] > before[:, start]
    order = np.argsort(shown, axis=1, kind="stable")
    positions = np.zeros(order.shape, dtype=np.int64)
    valid = np.take_along_axis(shown, order, axis=1)
    for row, held in enumerate(valid):
        slots = order[row, held]
        # Ranks: filling has moved what is behind it, so that there is no absolute place.
        positions[row, held] = slot_positions(start[slots], stop[slots], context_length, absolute=False, stride=stride)
    return torch.from_numpy(index[order]), torch.from_numpy(positions), torch.from_numpy(valid)
