"""Scoring: the NLL of raw tokens behind the slots that an arm chose, many requests at a time.

Every way in which such a benchmark has lied before is guarded here and not only tested: ``check`` predicts
single tokens again by the slowest path there is (one pass a token, its target read from the item itself), so
that gist positions scored as targets, or a horizon that is off by one, stop the run.

Shapes: n slots of a context, k tokens that follow it, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from megacontext.engine.assemble import Slots, positions_of
from megacontext.engine.slot_reader import SlotReader
from megacontext.errors import InvariantError
from megacontext.evaluation.items import IntArray
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.positions import PositionStrategy, WindowRanks

FloatArray = npt.NDArray[np.float64]

# Slots in one pass. On a CPU larger batches are slower per token (they leave the cache: 10,300 tokens/s for one window of 392,
# 7,900 for eight), on a GPU they fill it.
CPU_SLOTS, GPU_SLOTS = 512, 65_536


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """``following`` int64 [k] raw tokens from token position ``start`` on, to be predicted behind ``context``."""

    context: Slots
    following: IntArray
    start: int

    def __len__(self) -> int:
        return len(self.context) + len(self.following)

    @property
    def whole(self) -> Slots:
        """Context and following tokens."""
        return self.context.then(self.following, self.start, -1)

    @property
    def key(self) -> bytes:
        """Names what is computed: chunks with one key have the same NLL."""
        slots = self.whole
        digest = hashlib.blake2b(len(self.following).to_bytes(4, "little"), digest_size=16)
        for column in (slots.token, slots.start, slots.stop, slots.vectors):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.digest()

    def continued_by(self, later: Chunk) -> bool:
        """Whether ``later`` reads exactly this context and these tokens, so that one pass can score both."""
        mine, theirs = self.whole, later.context
        same = len(mine) == len(theirs) == mine.common_prefix(theirs)
        return same and np.array_equal(mine.vectors, theirs.vectors)

    def joined(self, later: Chunk) -> Chunk:
        """This chunk and the one that continues it."""
        return Chunk(context=self.context, following=np.concatenate([self.following, later.following]), start=self.start)


def token_forwards(chunks: Sequence[Chunk], passes: Callable[[Slots], npt.NDArray[np.bool_]]) -> int:
    """Slots through the base for the chunks of one item, the cache kept up to the first slot that changed.

    ``passes`` says which slots go through the base at all, bool [n]: key/value gists do not.
    """
    total, before = 0, None
    for chunk in chunks:
        whole = chunk.whole
        total += int(passes(whole)[0 if before is None else before.common_prefix(whole) :].sum())
        before = whole
    return total


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores slots with a base; positions by one strategy for all arms. ``encoder``: whose gists they hold, if any."""

    base: BaseLM
    encoder: GistEncoder | None = None
    strategy: PositionStrategy = field(default_factory=WindowRanks)

    @cached_property
    def _reader(self) -> SlotReader:
        return SlotReader(self.base, self.encoder)

    def __call__(self, chunks: Sequence[Chunk]) -> list[FloatArray]:
        """NLL float64 [k] (nats) of each chunk's following tokens. What occurs twice is computed once."""
        merged = self._merged(chunks)
        keys = [chunk.key for chunk, _ in merged]
        unique = dict(zip(keys, (chunk for chunk, _ in merged), strict=True))
        found: dict[bytes, FloatArray] = {}
        for batch in self._batches(unique):
            scored = self._score([unique[key] for key in batch])
            found.update(zip(batch, scored, strict=True))
        parts: list[FloatArray] = []
        for key, (_, sizes) in zip(keys, merged, strict=True):
            parts += np.split(found[key], np.cumsum(sizes)[:-1])
        return parts

    def passes(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Which slots go through the base: bool [n]."""
        return self._reader.passes(slots)

    def _positions(self, slots: Slots) -> IntArray:
        return positions_of(slots, self.strategy, self.base.context_length)

    def _merged(self, chunks: Sequence[Chunk]) -> list[tuple[Chunk, list[int]]]:
        """Chunks, those that continue one another joined, and the number of tokens of each part."""
        merged: list[tuple[Chunk, list[int]]] = []
        for chunk in chunks:
            if merged and merged[-1][0].continued_by(chunk):
                before, sizes = merged[-1]
                # Where a window is nearly full, gists may move closer together as it grows.
                if np.array_equal(self._positions(before.whole), self._positions(chunk.whole)[: len(before)]):
                    merged[-1] = (before.joined(chunk), [*sizes, len(chunk.following)])
                    continue
            merged.append((chunk, [len(chunk.following)]))
        return merged

    def _batches(self, unique: dict[bytes, Chunk]) -> Iterable[list[bytes]]:
        """Keys of chunks of the same shape, as many as a pass shall hold."""
        slots = CPU_SLOTS if self.base.device.type == "cpu" else GPU_SLOTS
        shapes: dict[tuple[int, int, int], list[bytes]] = {}
        for key, chunk in unique.items():
            shapes.setdefault((len(chunk), len(chunk.following), len(chunk.context.vectors)), []).append(key)
        for (length, _, _), keys in shapes.items():
            rows = max(1, slots // length)
            for start in range(0, len(keys), rows):
                yield keys[start : start + rows]

    def _score(self, chunks: Sequence[Chunk]) -> list[FloatArray]:
        before = [chunk.context.then(chunk.following[:-1], chunk.start, -1) for chunk in chunks]
        places = np.stack([self._positions(chunk.whole)[:-1] for chunk in chunks])
        targets = torch.from_numpy(np.stack([chunk.following for chunk in chunks])).to(self.base.device)
        with torch.no_grad():
            logits = self._reader(before, places, last=targets.shape[1])
            nll = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")
        return list(nll.double().cpu().numpy())

    def check(self, chunk: Chunk, nll: FloatArray, scored: IntArray, context: int) -> None:
        """InvariantError unless ``nll`` [k] is what single passes give for the first and last token of ``chunk``.

        ``scored`` int64 [H] are the item's own tokens from position ``context`` on.
        """
        tolerance = 2e-3 if self.base.dtype in (torch.float32, torch.float64) else 0.1
        positions = self._positions(chunk.whole)[None]
        for at in sorted({0, len(nll) - 1}):
            place = chunk.start + at
            before = chunk.context.then(scored[chunk.start - context : place - context], chunk.start, -1)
            with torch.no_grad():
                logits = self._reader([before], positions[:, : len(before)], last=1)
            slow = -float(torch.log_softmax(logits[0, -1].double(), dim=-1)[int(scored[place - context])])
            if not abs(slow - float(nll[at])) <= tolerance:
                raise InvariantError(
                    f"token {place - context} of the horizon was scored as {float(nll[at]):.4f} nats, but predicting it "
                    f"alone gives {slow:.4f}: the benchmark scores something else than the tokens behind the window"
                )
