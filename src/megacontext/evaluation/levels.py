"""LOD2 and LOD3 on their own: whole spans of 1,024 or 32,768 tokens behind one gist each.

No small base can read such spans raw, so the references are dropping them and showing another span's gist in the
same place; for LOD2 also the same tokens as LOD1 gists, whose gain says how much there was to keep. Geometry of an
item: far spans at the level in question, then ``near`` tokens as LOD1 gists, then a raw tail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megacontext.core import BLOCK, Timeline, WorkingContext
from megacontext.engine.assemble import Slots, slots_of
from megacontext.engine.bundle import Bundle
from megacontext.errors import ConfigError
from megacontext.evaluation.arms import Arm, Item
from megacontext.evaluation.bootstrap import interval
from megacontext.evaluation.gists import GistBank, mean_of_children, noise_like
from megacontext.evaluation.items import Items
from megacontext.evaluation.measured import measure
from megacontext.evaluation.report import Figures
from megacontext.evaluation.scoring import Chunk
from megacontext.models import BaseLM

F16 = npt.NDArray[np.float16]
Change = Callable[[Item], F16]


@dataclass(frozen=True, kw_only=True)
class LevelGeometry:
    """``spans`` nodes of level ``lod``, then ``near`` tokens as LOD1 gists, then ``tail`` raw tokens."""

    lod: int
    spans: int
    near: int
    tail: int = 128
    horizon: int = 64

    @property
    def far(self) -> int:
        """Tokens behind the nodes of level ``lod``."""
        return int(self.spans * BLOCK**self.lod)

    def slots(self, vectors: int, lod: int) -> int:
        """Slots beside the raw tail with the far spans as nodes of ``lod``."""
        return (self.far // int(BLOCK**lod) + self.near // BLOCK) * vectors

    def fits(self, base: BaseLM, vectors: int, lod: int) -> bool:
        """Whether the base has positions for that."""
        return self.slots(vectors, lod) + self.tail + self.horizon <= base.context_length


def _window(geometry: LevelGeometry, lod: int, vectors: int) -> WorkingContext:
    far, near, tail = (tokens // BLOCK for tokens in (geometry.far, geometry.near, geometry.tail))
    nodes = geometry.far // int(BLOCK**lod)
    return WorkingContext(
        timeline=Timeline(blocks=far + near + tail),
        lod=np.concatenate([np.full(nodes, lod), np.ones(near), np.zeros(tail)]).astype(np.int8),
        index=np.concatenate([np.arange(nodes), np.arange(far, far + near + tail)]),
        budget=geometry.slots(vectors, lod) + geometry.tail,
        recent=geometry.tail,
        vectors=vectors,
    )


def _arm(geometry: LevelGeometry, lod: int, *, change: Change | None = None, drop: bool = False) -> Arm:
    """The far spans as nodes of ``lod``, with other vectors where there is a ``change``, or not at all."""

    def arm(item: Item) -> list[Chunk]:
        reader, vectors = item.reader, item.vectors
        if change is not None:
            reader = replace(reader, gists={**reader.gists, lod: change(item)})
        slots: Slots = slots_of(_window(geometry, lod, vectors), reader, np.zeros(0, dtype=np.int64), gists=True)
        if drop:
            slots = slots.take(np.arange(geometry.far // int(BLOCK**lod) * vectors, len(slots)))
        return [Chunk(context=slots, following=item.scored, start=item.context)]

    return arm


def level_arms(bundle: Bundle, items: Items, geometry: LevelGeometry, bank: GistBank) -> dict[str, Arm]:
    """``drop``, the level and its controls, and the levels below as far as they fit the base."""
    base, lod = bundle.base, geometry.lod
    name, vectors = f"lod{lod}", bank.encoder.vectors

    def mean(item: Item) -> F16:
        children = item.reader.gists[lod - 1]
        count = len(children) // BLOCK
        slots = torch.from_numpy(children[: count * BLOCK].astype(np.float32)).reshape(count, -1, children.shape[-1])
        return mean_of_children(slots, base, bank.encoder, lod)

    chosen = {
        "drop": _arm(geometry, lod, drop=True),
        name: _arm(geometry, lod),
        f"{name}_swapped": _arm(geometry, lod, change=lambda item: bank(items.other(item.row), lod)),
        f"{name}_mean": _arm(geometry, lod, change=mean),
        f"{name}_noise": _arm(
            geometry, lod, change=lambda item: noise_like(item.reader.gists[lod], item.row, bank.encoder.layout)
        ),
    }
    for below in range(1, lod):
        if geometry.fits(base, vectors, below):
            chosen[f"lod{below}"] = _arm(geometry, below)
    return chosen


def measure_level(
    bundle: Bundle, items: Items, geometry: LevelGeometry, *, seed: int, progress: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """NLL of every arm, what the level gains over dropping, and what share of the gain of LOD1 it keeps."""
    if bundle.gists is None or not geometry.fits(bundle.base, bundle.gists.vectors, geometry.lod):
        raise ConfigError(f"the base has no room for {geometry.spans} LOD{geometry.lod} gists before a tail of {geometry.tail}")
    bank = GistBank(items, bundle.base, bundle.gists)
    chosen = level_arms(bundle, items, geometry, bank)
    levels = range(1, geometry.lod + 1)
    figures = Figures(measure(bundle.base, bundle.gists, items, chosen, progress=progress, bank=bank, levels=levels), seed=seed)
    name = f"lod{geometry.lod}"
    pairs = [(name, other) for other in ("drop", f"{name}_swapped", f"{name}_mean", f"{name}_noise")]
    pairs += [("lod1", "drop")] if figures.has("lod1") else []
    gain = figures.difference("drop", name)
    result: dict[str, Any] = {
        "config": {"spans": geometry.spans, "far": geometry.far, "near_as_lod1": geometry.near, "tail": geometry.tail,
                   "items": len(items), "documents": len(set(items.group.tolist()))},
        "arms": {arm: {key: value for key, value in figures.arm(arm).items() if key != "slots"} for arm in chosen},
        "differences": figures.differences(pairs),
        "gain": gain["diff"],
        "gain_ci": gain["ci"],
    }  # fmt: skip
    if figures.has("lod1"):
        # A share of nothing is noise: it is said only where LOD1 gains something on these items.
        result["judged"] = bool(figures.difference("drop", "lod1")["ci"][0] > 0)
        kept = figures.ratio(("drop", name), ("drop", "lod1"))
        result |= {"kept_of_lod1": float(kept[0]), "kept_of_lod1_ci": interval(kept[1:])}
    return result
