"""Slots through the base, whichever kind of gist the encoder makes.

Gists in the base's embedding space are slots like tokens. Key/value gists (``models.kv_memory``) go through no layer:
only raw slots pass, and lookup heads read the gists before them.

Shapes: B rows, n slots, m gist vectors, R entries of a vector, H lookup heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megacontext.engine.assemble import IntArray, Slots, embed_slots
from megacontext.errors import BudgetError
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.cache import KeyValueCache
from megacontext.models.kv_memory import KeyValueLayout, StoredMemory


class SlotReader:
    """Reads slots with ``base``; ``encoder`` (None: there are no gists) says what kind the gists are."""

    def __init__(self, base: BaseLM, encoder: GistEncoder | None) -> None:
        self._base = base
        self._entries = None
        if encoder is not None and encoder.layout is not None:
            base.enable_lookup()
            self._entries = GistEntries(base, encoder.layout)

    def passes(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Which slots go through the base's layers: bool [n]."""
        return np.ones(len(slots), dtype=np.bool_) if self._entries is None else slots.token >= 0

    def __call__(
        self, rows: Sequence[Slots], positions: IntArray, *, last: int, keep: int = 0, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Logits float32 [B, last, V] behind the last slots of each row, which must be raw where gists do not pass.

        ``positions`` int64 [B, n]; ``keep`` leading slots are in the ``cache`` already, which is extended. Rows have as many
        raw slots and gists as one another. BudgetError where nothing is left that could predict.
        """
        passing = [self.passes(slots) for slots in rows]
        if not all(bool(each[-last:].all()) for each in passing):
            raise BudgetError(
                "the newest slot of the window must be a raw token: keep a raw tail (recent) of at least one block"
            )
        chosen = [keep + np.flatnonzero(each[keep:]) for each in passing]
        return self.read(rows, positions, chosen, last=last, cache=cache)

    def read(
        self,
        rows: Sequence[Slots],
        positions: IntArray,
        chosen: Sequence[IntArray],
        *,
        last: int,
        cache: KeyValueCache | None = None,
        mask: Tensor | None = None,
        blind: Sequence[npt.NDArray[np.bool_]] | None = None,
    ) -> Tensor:
        """The same for the slots ``chosen`` int64 [q] of each row, ascending; ``mask`` as in ``BaseLM.forward``; those
        that are ``blind`` bool [q] are shown no gists by lookup heads."""
        base = self._base
        embeds = torch.cat([embed_slots(slots, base, at) for slots, at in zip(rows, chosen, strict=True)])
        places = torch.from_numpy(np.stack([row[at] for row, at in zip(positions, chosen, strict=True)])).to(base.device)
        memory = self.memory(rows, positions, chosen, blind)
        return base.forward(embeds, places, cache=cache, logits_from=len(chosen[0]) - last, mask=mask, memory=memory).logits

    def memory(
        self,
        rows: Sequence[Slots],
        positions: IntArray,
        chosen: Sequence[IntArray],
        blind: Sequence[npt.NDArray[np.bool_]] | None = None,
    ) -> StoredMemory | None:
        """What lookup heads read beside the ``chosen`` slots int64 [q] of each row; None where no gist is read so."""
        return self._entries.memory(rows, positions, chosen, blind) if self._entries is not None else None


class GistEntries:
    """Makes what lookup heads read of the gists in a window; kept while the gists stay where they are."""

    def __init__(self, base: BaseLM, layout: KeyValueLayout) -> None:
        self._base, self._layout, self._rotary = base, layout, base.rotary
        self._held: tuple[list[npt.NDArray[np.float16]], IntArray, StoredMemory] | None = None

    def memory(
        self,
        rows: Sequence[Slots],
        positions: IntArray,
        reading: Sequence[IntArray],
        blind: Sequence[npt.NDArray[np.bool_]] | None = None,
    ) -> StoredMemory | None:
        """Entries of all gists of the rows; slots ``reading`` int64 [q] each see those before them, but for those that are
        ``blind`` bool [q]. None without gists."""
        gists = [np.flatnonzero(slots.token < 0) for slots in rows]
        if not len(gists[0]):
            return None
        vectors = [slots.vectors for slots in rows]
        places = np.stack([row[at] for row, at in zip(positions, gists, strict=True)])
        stored = self._stored(vectors, places)
        if blind is None and all(at[-1] < by[0] for at, by in zip(gists, reading, strict=True)):
            return stored  # everything that is read stands behind all gists: a token that is decoded, always
        sees = np.stack([at[None] < by[:, None] for at, by in zip(gists, reading, strict=True)])
        if blind is not None:
            sees &= ~np.stack(blind)[:, :, None]
        return self.seen_by(stored, torch.from_numpy(sees))

    def seen_by(self, stored: StoredMemory, sees: Tensor) -> StoredMemory:
        """The same entries, each gist seen only where ``sees`` bool [B or 1, q, m] says so."""
        allow = sees.to(self._base.device).repeat_interleave(self._layout.entries, dim=2)
        bias = stored.bias.masked_fill(~allow[:, None], torch.finfo(self._base.dtype).min)
        return StoredMemory(layout=self._layout, keys=stored.keys, values=stored.values, bias=bias)

    def _stored(self, vectors: list[npt.NDArray[np.float16]], places: IntArray) -> StoredMemory:
        if self._held is not None:
            known, at, memory = self._held
            same = len(known) == len(vectors) and all(a is b for a, b in zip(known, vectors, strict=True))
            if same and np.array_equal(at, places):
                return memory
        memory = self.entries_of(torch.from_numpy(np.stack(vectors).astype(np.float32)), torch.from_numpy(places))
        self._held = (vectors, places, memory)
        return memory

    def entries_of(self, gists: Tensor, places: Tensor) -> StoredMemory:
        """From gists [B, m, W] at positions int64 [B, m]; the bias [B, 1, 1, m·R] hides entries that are none.

        Differentiable.
        """
        layout, base = self._layout, self._base
        keys, values, _ = layout.unpack(gists.to(base.device, base.dtype))
        there = (keys != 0).flatten(3).any(-1).flatten(1)
        at = places.to(base.device).repeat_interleave(layout.entries, dim=1)

        def by_layer(entries: Tensor) -> dict[int, Tensor]:
            return {layer: layout.of_layer(entries, layer).flatten(1, 2).transpose(1, 2) for layer in layout.layers}

        turned = {layer: self._rotary.put_on(part, at) for layer, part in by_layer(keys).items()}
        bias = torch.full(there.shape, -layout.reluctance, dtype=base.dtype, device=base.device)
        bias = bias.masked_fill(~there, torch.finfo(base.dtype).min)[:, None, None]
        return StoredMemory(layout=layout, keys=turned, values=by_layer(values), bias=bias)
