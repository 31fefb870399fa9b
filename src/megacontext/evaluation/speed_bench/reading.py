"""The base alone: with keys and values of everything before, or of a plain sliding window.

What a pass costs depends on how many keys there are, never on what they say; so caches are filled with random numbers
instead of being read in, which would take hours for the longest.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from megacontext.models import BaseLM
from megacontext.models import cache as kv


def slot_bytes(base: BaseLM) -> int:
    """Bytes of one slot's keys and values in all layers."""
    config = base.model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * _head_width(config) * base.dtype.itemsize)


def filled(base: BaseLM, slots: int) -> kv.KeyValueCache:
    """A cache of ``slots`` random keys and values."""
    config = base.model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    cache = base.new_cache()
    with torch.no_grad():
        for layer in range(config.num_hidden_layers):
            keys, values = (torch.randn(1, heads, slots, _head_width(config), dtype=base.dtype) for _ in range(2))
            if slots:
                cache.states.update(keys.to(base.device), values.to(base.device), layer)
    return cache


class Decoder:
    """Reads one token after the other behind ``slots`` of a cache, which is cut back to them after each round."""

    def __init__(self, base: BaseLM, slots: int) -> None:
        self._base, self._slots, self._cache = base, slots, filled(base, slots)
        self._token = torch.ones(1, 1, dtype=torch.int64)

    def round(self, tokens: int) -> list[float]:
        """Seconds of each of ``tokens`` tokens."""
        taken = []
        for at in range(tokens):
            started = time.perf_counter()
            with torch.no_grad():
                place = torch.full((1, 1), self._slots + at, device=self._base.device)
                self._base.forward(self._base.embed(self._token), place, cache=self._cache).logits.argmax(-1).item()
            taken.append(time.perf_counter() - started)
        kv.crop(self._cache, self._slots)
        return taken


def prefill_seconds(base: BaseLM, chunk: int, depths: tuple[int, ...], repeats: int) -> list[tuple[int, float]]:
    """Seconds that ``chunk`` more tokens take behind each depth: medians over ``repeats`` turns."""
    taken: dict[int, list[float]] = {depth: [] for depth in depths}
    embeds = base.embed(torch.ones(1, chunk, dtype=torch.int64))
    for _ in range(repeats):
        for depth in depths:
            cache = filled(base, depth)
            started = time.perf_counter()
            with torch.no_grad():
                base.forward(embeds, torch.arange(depth, depth + chunk)[None], cache=cache, logits_from=chunk - 1)
            taken[depth].append(time.perf_counter() - started)
    return [(depth, float(np.median(each))) for depth, each in taken.items()]


class Prefill:
    """How long reading N tokens takes: a piece costs a + b·depth, which is what attention is, fitted to what was timed."""

    def __init__(self, chunk: int, timed: list[tuple[int, float]]) -> None:
        self.chunk, self.timed = chunk, timed
        depths, seconds = (np.array(each, dtype=np.float64) for each in zip(*timed, strict=True))
        slope, first = np.polyfit(depths, seconds, 1)
        self.slope, self.first = (float(slope), float(first)) if slope > 0 and first > 0 else (0.0, float(seconds.min()))

    def seconds(self, tokens: int) -> float:
        """For ``tokens`` tokens from an empty cache on."""
        pieces = tokens / self.chunk
        return pieces * self.first + self.slope * self.chunk * pieces * max(0.0, pieces - 1) / 2


def _head_width(config: object) -> int:
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)  # type: ignore[attr-defined]
