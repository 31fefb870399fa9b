"""Labels for LensNet: what expanding one block really changes, measured by counterfactual passes.

For an item whose far context is all gists, each block in turn is read raw and the horizon is scored
again. The gain of block i at decision point t is the mean NLL that it saves over the next ``interval``
tokens; one set of passes labels every decision point, since the tokens before it are the same.

Shapes: k far blocks, t decision points an item, q query tokens, F features, W numbers of a gist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from megacontext.core import BLOCK
from megacontext.engine.evidence import block_features
from megacontext.evaluation.arms import Item, make_reader
from megacontext.evaluation.items import Items
from megacontext.evaluation.oracle import Gains
from megacontext.evaluation.scoring import Scorer
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.positions import window_ranks

QUERY = 128


@dataclass(frozen=True, kw_only=True)
class Labels:
    """``features`` float32 [n, k, F], ``gists`` float16 [n, k, W], ``query`` int64 [n, q], ``gain`` float32 [n, k]."""

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
    gains = Gains(Scorer(base=base, encoder=encoder, strategy=window_ranks(encoder)))
    for number, ids in enumerate(items.ids):
        part = path.with_name(f"{path.stem}-{number:05d}.part")
        if part.is_file():
            parts.append(Labels(**load_file(str(part))))
        else:
            item = Item(ids=ids, far=items.far, tail=items.tail, reader=make_reader(ids, encoder, base), row=number)
            parts.append(_label_item(item, items, gains, interval))
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


def _label_item(item: Item, items: Items, gains: Gains, interval: int) -> Labels:
    reader, ids = item.reader, item.ids
    saved = gains(item)
    blocks = np.arange(item.blocks)
    far = slice(0, item.blocks)
    points = range(0, items.horizon, interval)
    rows = []
    for at in points:
        seen = items.context + at
        rows.append(
            block_features(
                reader.ids[far],
                reader.fill[far],
                ids[max(0, seen - QUERY) : seen],
                distance=seen - blocks * BLOCK,
                same_document=np.ones(len(blocks), dtype=np.bool_),
            )
        )
    return Labels(
        features=np.stack(rows),
        gists=np.repeat(reader.gists[1][None, far, 0], len(rows), axis=0),
        query=np.stack([ids[items.context + at - QUERY : items.context + at] for at in points]),
        gain=np.stack([saved[:, at : at + interval].mean(axis=1) for at in points]).astype(np.float32),
    )
