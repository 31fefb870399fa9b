"""Measured arms on the same items, and the one function that runs arms.

Shapes: n items, H scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from megacontext.errors import InvalidInput, InvariantError, ModelMismatch
from megacontext.evaluation.arms import Arm, Item, reader_over
from megacontext.evaluation.gists import GistBank
from megacontext.evaluation.items import IntArray, Items
from megacontext.evaluation.scoring import Chunk, FloatArray, Scorer, token_forwards
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.fingerprints import hash_model
from megacontext.models.positions import window_ranks

GROUP = 16
"""Items that are scored together."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """NLL float64 [n, H] of each arm on the same items; NaN rows are items that it was not run on.

    ``slots`` beside the tail and ``forwards`` (slots through the base per scored token, the cache kept up to the
    first slot that changed), means over what was run. ``bases``: fingerprint of the base that scored each arm.
    ModelMismatch where they differ: figures of one model are no reference for another.
    """

    items: Items
    nll: Mapping[str, FloatArray]
    slots: Mapping[str, float]
    forwards: Mapping[str, float] = field(default_factory=dict)
    bases: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.nll.items():
            if values.shape != self.items.scored.shape:
                raise ValueError(f"arm {name} did not score exactly the horizon: {values.shape}")
        if len(set(self.bases.values())) > 1:
            by_base = {base: sorted(n for n, b in self.bases.items() if b == base) for base in set(self.bases.values())}
            parts = "; ".join(f"{base[:12]}: {', '.join(names)}" for base, names in sorted(by_base.items()))
            raise ModelMismatch(
                f"arms were scored by different base models ({parts}): measure full and drop again with the model that is "
                "judged"
            )

    def take(self, rows: IntArray) -> Measured:
        """Only the items at ``rows`` int64 [k]; slots and forwards stay the means over all that was run."""
        return replace(self, items=self.items.take(rows), nll={name: values[rows] for name, values in self.nll.items()})

    def with_arms_of(self, other: Measured) -> Measured:
        """These arms and those of ``other``, measured on the same items by the same base."""
        if other.items.digest != self.items.digest:
            raise InvalidInput("the other arms were measured on other items: use the same documents, geometry and seed")
        return Measured(
            items=self.items,
            nll={**self.nll, **other.nll},
            slots={**self.slots, **other.slots},
            forwards={**self.forwards, **other.forwards},
            bases={**self.bases, **other.bases},
        )


def measure(
    base: BaseLM,
    encoder: GistEncoder | None,
    items: Items,
    chosen: Mapping[str, Arm],
    *,
    progress: Callable[[], None] = lambda: None,
    bank: GistBank | None = None,
    rows: Mapping[str, IntArray] | None = None,
    scorer: Scorer | None = None,
    levels: Sequence[int] = (1,),
) -> Measured:
    """Run the ``chosen`` arms on every item, or on the ``rows`` int64 [k] that are named for an arm.

    ``bank`` holds gists that were made already; ``levels`` of gists that the arms need. ``progress`` is called
    once an item. The first item of every arm is scored a second time, token by token: InvariantError where the two
    differ.
    """
    scorer = scorer or Scorer(base=base, encoder=encoder, strategy=window_ranks(encoder))
    if bank is None and encoder is not None:
        bank = GistBank(items, base, encoder)
    run = _Run(items, chosen, rows or {})
    for first in range(0, len(items), GROUP):
        group = range(first, min(first + GROUP, len(items)))
        made = {row: _item(items, row, bank, levels) for row in group}
        work = [(name, row, list(arm(made[row]))) for name, arm in chosen.items() for row in group if run.wanted(name, row)]
        for name, row, chunks in work:
            check_chunks(name, made[row], chunks)
        scored = iter(scorer([chunk for _, _, chunks in work for chunk in chunks]))
        for name, row, chunks in work:
            parts = [next(scored) for _ in chunks]
            if run.first(name):
                for chunk, part in zip(chunks, parts, strict=True):
                    scorer.check(chunk, part, items.scored[row], items.context)
            run.take(name, row, chunks, parts, token_forwards(chunks, scorer.passes))
        for _ in group:
            progress()
    # Not the cached fingerprint: a base may be measured while it is trained.
    named = hash_model(base.model.config.get_text_config(decoder=True), base.model.named_parameters())
    return Measured(
        items=items,
        nll=run.nll,
        slots={name: float(np.mean(values)) for name, values in run.slots.items()},
        forwards={name: float(np.mean(values)) for name, values in run.forwards.items()},
        bases=dict.fromkeys(chosen, named),
    )


def check_chunks(name: str, item: Item, chunks: Sequence[Chunk]) -> None:
    """InvariantError unless the chunks score the item's horizon and read only what comes before it, as it is."""
    if not np.array_equal(np.concatenate([chunk.following for chunk in chunks]), item.scored):
        raise InvariantError(f"arm {name} scores something else than the tokens behind the window")
    at = item.context
    for chunk in chunks:
        slots = chunk.context
        if chunk.start != at or (len(slots) and slots.stop.max() > chunk.start):
            raise InvariantError(f"the window of arm {name} reaches to token {slots.stop.max()}, but {at} is to be predicted")
        raw = slots.token >= 0
        if not np.array_equal(slots.token[raw], item.ids[slots.start[raw]]):
            raise InvariantError(f"the window of arm {name} holds tokens that are not the item's")
        at += len(chunk.following)


def _item(items: Items, row: int, bank: GistBank | None, levels: Sequence[int]) -> Item:
    gists = {lod: bank(row, lod) for lod in levels} if bank is not None else {}
    return Item(ids=items.ids[row], far=items.far, tail=items.tail, reader=reader_over(items.ids[row], gists), row=row)


class _Run:
    """Collects what the arms gave."""

    def __init__(self, items: Items, chosen: Mapping[str, Arm], rows: Mapping[str, IntArray]) -> None:
        self._items, self._rows = items, {name: frozenset(rows[name].tolist()) for name in rows}
        self.nll = {name: np.full(items.scored.shape, np.nan) for name in chosen}
        self.slots: dict[str, list[float]] = {name: [] for name in chosen}
        self.forwards: dict[str, list[float]] = {name: [] for name in chosen}

    def wanted(self, name: str, row: int) -> bool:
        return name not in self._rows or row in self._rows[name]

    def first(self, name: str) -> bool:
        return not self.slots[name]

    def take(self, name: str, row: int, chunks: Sequence[Chunk], parts: Sequence[FloatArray], forwards: int) -> None:
        values = np.concatenate(parts)
        if values.shape != self._items.scored[row].shape:
            raise ValueError(f"arm {name} did not score exactly the horizon: {len(values)} tokens")
        self.nll[name][row] = values
        context = self._items.context
        beside = [len(chunk.context) - self._items.tail - (chunk.start - context) for chunk in chunks]
        self.slots[name].append(float(np.mean(beside)))
        self.forwards[name].append(forwards / len(values))
