"""The passes of several sessions in one: windows of different lengths and with different gists, each in a row of its own.

A session plans its pass (``Session.next_input``) on a cache that is a row (``open``). A long pass is read in pieces, so that
others need not wait for it. What a row holds changes only when a pass went through, and then for all of its sessions.

Shapes: b sessions of a pass, B rows (those between are padding), q slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megacontext.engine.assemble import embed_slots
from megacontext.models import BaseLM, KeyValueCache
from megacontext.models.batch_cache import RowPass, RowStore
from megacontext.models.batch_memory import RowMemory

if TYPE_CHECKING:
    from megacontext.engine.session import Session


class Reading:
    """What a session has to have read before its next token, of which ``done`` slots went through the base."""

    def __init__(self, session: Session) -> None:
        self.session, self.step, self.done = session, session.next_input(), 0
        self.memory = session.memory(self.step)

    @property
    def left(self) -> int:
        """Slots that have to go through."""
        return len(self.step) - self.done

    @property
    def alone(self) -> bool:
        """Whether it cannot share a pass: it says itself which slots see which (a bolder reuse of keys and values)."""
        return self.step.mask is not None


class BatchReader:
    """``rows`` windows of at most ``slots`` slots each, read by ``base``."""

    def __init__(self, base: BaseLM, *, rows: int, slots: int) -> None:
        self._base, self._store, self._memory = base, RowStore(rows=rows, slots=slots), RowMemory(rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values of all rows."""
        return self._store.nbytes

    def open(self, row: int) -> KeyValueCache:
        """An empty cache in ``row``, for ``Session.house``."""
        self._memory.forget(row)
        return self._store.open(row)

    def read(self, readings: Sequence[Reading], counts: Sequence[int]) -> Tensor:
        """Let the next ``counts`` slots of each through, in one pass: logits float32 [b, V] behind the last of them, which are
        those that the session wants when nothing is left. Readings that are ``alone`` come alone, in one piece."""
        if readings[0].alone:
            (reading,) = readings
            logits = reading.session.run(reading.step)[None]
            reading.done = len(reading.step)
            return logits
        rows = self._store.together([reading.step.cache for reading in readings], counts, self._base.device)
        with torch.no_grad():
            embeds, places = self._input(rows, readings)
            memory = self._memory.read(rows, [each.memory for each in readings], [each.done for each in readings])
            logits = self._base.forward_rows(embeds, places, rows, memory=memory)[torch.from_numpy(rows.order)]
        self._store.settle(rows)
        for reading, count in zip(readings, counts, strict=True):
            reading.done += count
            if not reading.left:
                reading.session.settle(reading.step)
        return logits

    def _input(self, rows: RowPass, readings: Sequence[Reading]) -> tuple[Tensor, Tensor]:
        """Embeddings [B, q, d] and positions int64 [B, q] of the next slots; padding is token 0 at position 0."""
        tokens = torch.zeros(rows.size, rows.new, dtype=torch.int64)
        places = torch.zeros_like(tokens)
        gists = []
        for row, count, reading in zip(rows.order.tolist(), rows.counts.tolist(), readings, strict=True):
            step = reading.step
            at = step.at[reading.done : reading.done + count]
            token = step.slots.token[at]
            tokens[row, rows.new - count :] = torch.from_numpy(token)
            places[row, rows.new - count :] = torch.from_numpy(step.positions[at])
            if (token < 0).any():
                gists.append((row, count, embed_slots(step.slots, self._base, at)[0]))
        embeds = self._base.embed(tokens.clamp(min=0)).to(self._base.dtype)
        for row, count, content in gists:
            embeds[row, rows.new - count :] = content
        return embeds, places.to(self._base.device)
