"""What the base predicts when it reads everything: its likeliest tokens over the horizon of every slice, kept on disk.

Distillation and curricula replay them instead of reading the whole context again. Shapes: S slices, N blocks of context,
H tokens of horizon, K kept logits, B rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megacontext.core.node import BLOCK
from megacontext.models import BaseLM
from megacontext.training.losses import TOP, TopTeacher
from megacontext.training.row_cache import LIMIT, Arrays, Field, cached_rows, require_room
from megacontext.training.slices import SliceConfig, Slices


class TeacherCache:
    """The teacher of all slices of a split; row i belongs to slice i.

    Kept are the log-probabilities of the K likeliest tokens (logits, normalised over the whole vocabulary).
    """

    def __init__(self, arrays: Arrays) -> None:
        self._log_probs, self._indices = arrays["log_probs"], arrays["indices"]

    def __len__(self) -> int:
        return len(self._log_probs)

    def top(self, rows: npt.NDArray[np.int64], *, device: torch.device | str = "cpu") -> TopTeacher:
        """The teacher of slices int64 [B]: ``log_probs`` float16 and ``indices`` int64, both [B, H, K]."""
        log_probs = torch.from_numpy(np.array(self._log_probs[rows]))
        indices = torch.from_numpy(self._indices[rows].astype(np.int64))
        return TopTeacher(log_probs=log_probs.to(device), indices=indices.to(device))


def teacher_cache(
    slices: Slices,
    base: BaseLM,
    folder: Path,
    *,
    k: int = TOP,
    batch: int = 4,
    limit_bytes: int = LIMIT,
    progress: Callable[[int], None] = lambda _: None,
) -> TeacherCache:
    """Compute what ``folder`` lacks, ``batch`` slices at a time, or go on where an earlier call was cut off.

    Bound to the base and the slices by their fingerprints: ModelMismatch where the folder belongs to others. ConfigError where
    the base was not made for so long a context, or where the cache would exceed ``limit_bytes`` (2 GB at most).
    """
    blocks, horizon = slices.ids.shape[1], slices.horizon.shape[1]
    k = min(k, base.vocab_size)
    index_type = np.uint16 if base.vocab_size <= 1 << 16 else np.uint32
    fields = {
        "log_probs": Field(dtype=np.float16, shape=(horizon, k)),
        "indices": Field(dtype=index_type, shape=(horizon, k)),
    }
    require_room(folder, fields, len(slices), limit_bytes)
    SliceConfig(context_length=blocks * BLOCK, horizon=horizon).require_range(base.context_length)

    def compute(first: int, stop: int) -> Arrays:
        found = TopTeacher.of(full_context_logits(base, slices, np.arange(first, stop)), k)
        return {
            "log_probs": found.log_probs.half().cpu().numpy(),
            "indices": found.indices.cpu().numpy().astype(index_type),
        }

    return TeacherCache(
        cached_rows(
            folder,
            identity={"base": base.fingerprint, "slices": slices.sha256},
            fields=fields,
            rows=len(slices),
            compute=compute,
            chunk=batch,
            limit_bytes=limit_bytes,
            progress=progress,
        )
    )


@torch.no_grad()
def full_context_logits(base: BaseLM, slices: Slices, rows: npt.NDArray[np.int64]) -> Tensor:
    """Logits float32 [B, H, V] of every token of the horizons, the whole context read raw. Filling is left out."""
    ids, valid = packed(slices, rows)
    seen = torch.from_numpy(ids[:, :-1]).to(base.device)
    held = torch.from_numpy(valid[:, :-1]).to(base.device)
    positions = (held.long().cumsum(dim=1) - 1).clamp_min(0)
    first = seen.shape[1] - slices.horizon.shape[1]
    return base.forward(base.embed(seen), positions, held, logits_from=first).logits


def packed(slices: Slices, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Real tokens of context and horizon, flush right: ids int64 and validity bool [B, N·32 + H].

    What is not valid stands in front and is 0.
    """
    real = np.arange(BLOCK) < slices.fill[rows][..., None]
    contexts = slices.ids[rows]
    length, horizon = contexts.shape[1] * BLOCK, slices.horizon.shape[1]
    ids = np.zeros((len(rows), length + horizon), dtype=np.int64)
    valid = np.ones(ids.shape, dtype=np.bool_)
    ids[:, length:] = slices.horizon[rows]
    for row, (tokens, held) in enumerate(zip(contexts, real, strict=True)):
        start = length - int(held.sum())
        ids[row, start:length] = tokens[held]
        valid[row, :start] = False
    return ids, valid
