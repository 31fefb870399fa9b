"""Labels for LensNet: what expanding one block really changes, measured by counterfactual passes.

For an item whose far context is all gists, each block in turn is read raw and the horizon is scored
again. The gain of block i at decision point t is the mean NLL that it saves over the next ``interval``
tokens; one set of passes labels every decision point, since the tokens before it are the same.

Shapes: k far blocks, t decision points an item, q query tokens, F features, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from megacontext.core import BLOCK
from megacontext.engine.evidence import block_features
from megacontext.engine.substitution import Pattern, slot_positions
from megacontext.evaluation.arms import make_reader
from megacontext.evaluation.items import Items
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.positions import window_ranks

QUERY = 128


@dataclass(frozen=True, kw_only=True)
class Labels:
    """``features`` float32 [n, k, F], ``gists`` float16 [n, k, d], ``query`` int64 [n, q], ``gain`` float32 [n, k]."""

    features: npt.NDArray[np.float32]
    gists: npt.NDArray[np.float16]
    query: npt.NDArray[np.int64]
    gain: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.gain)


def measure_labels(
    base: BaseLM,
    encoder: GistEncoder,
    items: Items,
    *,
    interval: int,
    path: Path,
    progress: Callable[[], None] = lambda: None,
) -> Labels:
    """Label every item, or read what an earlier run wrote to ``path``; parts are saved as they are made."""
    if path.is_file():
        return Labels(**load_file(str(path)))
    path.parent.mkdir(parents=True, exist_ok=True)
    parts: list[Labels] = []
    for number, ids in enumerate(items.ids):
        part = path.with_name(f"{path.stem}-{number:05d}.part")
        if part.is_file():
            parts.append(Labels(**load_file(str(part))))
        else:
            parts.append(_label_item(base, encoder, items, ids, interval))
            _save(parts[-1], part)
        progress()
    names = ("features", "gists", "query", "gain")
    labels = Labels(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
    _save(labels, path)
    for part in path.parent.glob(f"{path.stem}-*.part"):
        part.unlink()
    return labels


def _save(labels: Labels, path: Path) -> None:
    partial = path.with_suffix(".writing")
    save_file(dict(vars(labels)), str(partial))
    partial.replace(path)


def _label_item(base: BaseLM, encoder: GistEncoder, items: Items, ids: npt.NDArray[np.int64], interval: int) -> Labels:
    reader = make_reader(ids[: items.far], encoder, base)
    stride = window_ranks(encoder).gist_stride
    gists = torch.from_numpy(reader.gists[1][:, 0].astype(np.float32))
    saved = expansion_gains(base, torch.from_numpy(ids), gists, items, stride=stride)
    blocks = np.arange(items.far // BLOCK)
    points = range(0, items.horizon, interval)
    rows = []
    for at in points:
        seen = items.context + at
        rows.append(
            block_features(
                reader.ids,
                reader.fill,
                ids[max(0, seen - QUERY) : seen],
                distance=seen - blocks * BLOCK,
                same_document=np.ones(len(blocks), dtype=np.bool_),
            )
        )
    return Labels(
        features=np.stack(rows),
        gists=np.repeat(reader.gists[1][None, :, 0], len(rows), axis=0),
        query=np.stack([ids[items.context + at - QUERY : items.context + at] for at in points]),
        gain=np.stack([saved[:, at : at + interval].mean(axis=1) for at in points]).astype(np.float32),
    )


def expansion_gains(base: BaseLM, ids: Tensor, gists: Tensor, items: Items, *, stride: int = 1) -> npt.NDArray[np.float64]:
    """NLL saved per scored token by reading each far block raw: float64 [k, H]; gists float [k, d].

    ``stride``: window positions that each gist takes.
    """
    far, rest = items.far // BLOCK, -(-(items.tail + items.horizon) // BLOCK)
    lod = np.concatenate([np.ones(far, dtype=np.int64), np.zeros(rest, dtype=np.int64)])
    opened = np.repeat(lod[None], far, axis=0)
    opened[np.arange(far), np.arange(far)] = 0
    with torch.no_grad():
        pool = torch.cat([base.embed(ids[None])[0], gists])
        before = _horizon_nll(base, pool, ids, lod[None], items, stride)
        after = _horizon_nll(base, pool, ids, opened, items, stride)
    return (before - after).double().numpy()


def _horizon_nll(base: BaseLM, pool: Tensor, ids: Tensor, lods: npt.NDArray[np.int64], items: Items, stride: int) -> Tensor:
    """NLL [rows, H] under each row's pattern of raw and gist blocks; all rows have as many slots."""
    length = len(ids)
    index, positions = [], []
    for lod in lods:
        where, start, stop, _ = Pattern(lod=lod).slots()
        # Gists are numbered from the pattern's own count of raw tokens and gists; the pool holds all of them.
        gist = np.flatnonzero(lod == 1)
        tokens = len(lod) * BLOCK
        at = np.where(where < tokens, where, length + gist[np.maximum(where - tokens, 0)] if len(gist) else where)
        keep = start < length
        index.append(at[keep])
        positions.append(slot_positions(start[keep], stop[keep], base.context_length, absolute=False, stride=stride))
    embeds = pool[torch.from_numpy(np.stack(index))]
    places = torch.from_numpy(np.stack(positions))
    first = embeds.shape[1] - 1 - items.horizon
    logits = base.forward(embeds[:, :-1], places[:, :-1], logits_from=first).logits
    targets = ids[-items.horizon :].expand(len(lods), -1)
    return torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")
