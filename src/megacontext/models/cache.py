"""Key/value caches that can be cut back exactly.

transformers' sliding layers forget what left the window, so they cannot be cut back; its
linear-attention layers cannot be cut back at all. Here every layer keeps everything and the mask
does the sliding (working contexts are small), so that a crop is always exact. Caches made elsewhere
are refused when they cannot be cropped.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from megacontext.errors import InvalidInput, UnsupportedModel


@dataclass
class KeyValueCache:
    """What the base has read so far: ``states`` (keys and values, [B, heads, T, head width] per
    layer) and which of the T slots are valid (bool [B, T]; None: all). ``BaseLM.forward`` extends
    it in place; use ``fork`` to keep a copy."""

    states: Any
    valid: Tensor | None = None

    @property
    def length(self) -> int:
        """Slots held."""
        return int(self.states.get_seq_length())


def new_cache() -> KeyValueCache:
    """An empty cache; layers appear as the base writes them, each keeping all its slots."""
    return KeyValueCache(states=DynamicCache())


def is_croppable(cache: KeyValueCache) -> bool:
    """Whether ``crop`` is exact: every layer is a plain growing one. An empty cache is."""
    return all(type(layer) is DynamicLayer for layer in cache.states.layers)


def crop(cache: KeyValueCache, keep: int) -> KeyValueCache:
    """Forget all slots after the first ``keep``, in place; returns the same cache.

    UnsupportedModel when a layer cannot be cut back (prefill anew instead); InvalidInput when fewer
    slots are held.
    """
    if not is_croppable(cache):
        kinds = sorted({type(layer).__name__ for layer in cache.states.layers})
        raise UnsupportedModel(
            f"a cache with layers {', '.join(kinds)} cannot be cut back exactly; start from new_cache() and prefill again"
        )
    if not 0 <= keep <= cache.length:
        raise InvalidInput(f"cannot keep {keep} slots of a cache that holds {cache.length}")
    truncate(cache, keep)
    return cache


def truncate(cache: KeyValueCache, keep: int) -> None:
    """Cut every layer to at most ``keep`` slots, even where a failed pass left them of different
    lengths."""
    for layer in cache.states.layers:
        surplus = int(layer.get_seq_length()) - keep
        if surplus > 0:
            # From transformers 5.18 on the argument is the number of slots to remove, and must be
            # negative.
            layer.crop(-surplus)
    if cache.valid is not None:
        cache.valid = cache.valid[:, :keep] if keep else None


def fork(cache: KeyValueCache) -> KeyValueCache:
    """An independent cache with the same content. Shares tensors: writing makes new ones, so this
    costs microseconds."""
    states = copy.copy(cache.states)
    states.layers = [copy.copy(layer) for layer in cache.states.layers]
    return KeyValueCache(states=states, valid=cache.valid)


def repeat(cache: KeyValueCache, times: int) -> KeyValueCache:
    """A fork whose every row appears ``times`` times in a row (B → B·times): one prefix, many
    continuations."""
    forked = fork(cache)
    for layer in forked.states.layers:
        layer.batch_repeat_interleave(times)
    if forked.valid is not None:
        forked.valid = forked.valid.repeat_interleave(times, dim=0)
    return forked


def extend_valid(cache: KeyValueCache, valid: Tensor | None, batch: int, new: int, device: torch.device) -> Tensor | None:
    """Validity of held plus new slots, bool [B, T + new]; None while everything is valid. Does not
    change the cache."""
    if cache.valid is None and valid is None:
        return None
    past = cache.valid
    if past is None:
        past = torch.ones(batch, cache.length, dtype=torch.bool, device=device)
    if valid is None:
        valid = torch.ones(batch, new, dtype=torch.bool, device=device)
    return torch.cat([past, valid], dim=1)
