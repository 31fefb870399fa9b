"""The share of its own tokens that can be read back from a gist, beside the controls that could expose it.

Shapes: n blocks of 32 tokens, g vectors per gist, d width of the base.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megacontext.core.node import BLOCK
from megacontext.errors import ModelMismatch
from megacontext.evaluation.bootstrap import group_weights, interval, weighted_mean
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.reconstruction import FOLDER, ReconstructionHead

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
PIECE = 64
"""Blocks whose logits are held at a time."""


def reconstructed_share(guesses: Tensor, ids: Tensor, live: Tensor) -> float:
    """The share of live tokens that are guessed: int64 [n, 32] twice, bool [n, 32]; NaN where none is live."""
    return float((guesses == ids)[live].double().mean())


def load_head(gistnet_folder: Path, encoder: GistEncoder, base: BaseLM) -> ReconstructionHead | None:
    """The head beside a GistNet, or None where none was trained; ModelMismatch if it reads other gists."""
    folder = gistnet_folder / FOLDER
    if not (folder / "config.json").is_file():
        return None
    head = ReconstructionHead.from_pretrained(folder, base_fingerprint=base.fingerprint)
    if head.config.gist_fingerprint != encoder.fingerprint:
        raise ModelMismatch(
            f"the head in {folder} was trained on gists of another GistNet: run megacontext train reconstruct with "
            "init set to this GistNet and train_gistnet: false"
        )
    return head


@torch.no_grad()
def vocabulary(base: BaseLM) -> Tensor:
    """The embedding of every token as the base reads it (some families scale their weights): float32 [V, d]."""
    return base.embed(torch.arange(base.vocab_size, device=base.device)[None])[0].float()


@torch.no_grad()
def guessed(head: ReconstructionHead, base: BaseLM, gists: Tensor) -> Tensor:
    """The most likely token of each place behind gists float [n, g, d]: int64 [n, 32]."""
    embedding = vocabulary(base).to(head.device)
    parts = [head.logits(piece.to(head.device, head.dtype), embedding).argmax(dim=-1) for piece in torch.split(gists, PIECE)]
    return torch.cat(parts).cpu()


def reconstruction(
    head: ReconstructionHead,
    base: BaseLM,
    encoder: GistEncoder,
    ids: IntArray,
    live: BoolArray,
    group: IntArray,
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Figures over blocks ``ids`` int64 [n, 32] with ``live`` tokens, intervals resampled by ``group`` int64 [n].

    ``tokens``: the share read back from a block's own gist, as it is stored (float16). ``swapped``: from another
    block's gist, half of the set away. ``common``: by always saying the most frequent token of the place, without any
    gist. ``tokens_minus_common``: paired. ``progress`` is told of blocks as they are done.
    """
    tokens, alive = torch.from_numpy(ids), torch.from_numpy(live)
    parts = []
    for piece, mask in zip(torch.split(tokens, PIECE), torch.split(alive, PIECE), strict=True):
        with torch.no_grad():
            embedded = base.embed(piece)
        parts.append(encoder.encode_canonical(embedded, mask, 1))
        progress(len(piece))
    gists = torch.cat(parts)
    swapped = gists.roll(len(gists) // 2, 0)
    right = {
        "tokens": (guessed(head, base, gists) == tokens).numpy(),
        "swapped": (guessed(head, base, swapped) == tokens).numpy(),
        "common": (head.common.cpu() == tokens).numpy(),
    }
    weights = np.concatenate([np.ones((1, len(ids))), group_weights(group, seed)])
    found: dict[str, Any] = {"blocks": len(ids), "scored": int(live.sum())}
    for name, hits in right.items():
        found |= _with_ci(name, weighted_mean(hits.astype(np.float64), live, weights))
    gain = right["tokens"].astype(np.float64) - right["common"]
    found |= _with_ci("tokens_minus_common", weighted_mean(gain, live, weights))
    found["by_place"] = [float(right["tokens"][live[:, j], j].mean()) for j in range(BLOCK)]
    return found


def _with_ci(name: str, values: npt.NDArray[np.float64]) -> dict[str, Any]:
    """The figure of the whole set, and the interval of the resampled ones."""
    return {name: float(values[0]), f"{name}_ci": interval(values[1:])}
