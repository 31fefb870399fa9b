"""Key/value caches that can be cut back exactly.

transformers' sliding layers forget what left the window, so they cannot be cut back; its
linear-attention layers cannot be cut back at all. Here every layer keeps everything and the mask
does the sliding (working contexts are small), so that a crop is always exact. Caches made elsewhere
are refused when they cannot be cropped.

Shapes: B rows, h heads, T slots held, c head width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from megacontext.errors import InvalidInput, UnsupportedModel
from megacontext.models.rotary import Rotary

ROOM = 256
"""Slots for which a layer makes room at a time."""


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


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A growing layer that has room behind its slots: a token writes its own row, where transformers copies all others.

    ``keys`` and ``values`` are views of the first T slots. Whatever replaces them (other rows, a larger batch) is noticed,
    since they then no longer begin where the room does.
    """

    keeps_all_slots = True
    _room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, h, new, c]; all keys and values [B, h, T + new, c]."""
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            grown: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return grown
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = int(self.get_seq_length())
        total = held + key_states.shape[-2]
        keys, values = self._with_room(held, total, key_states, value_states)
        keys[:, :, held:total] = key_states
        values[:, :, held:total] = value_states
        self.keys, self.values = keys[:, :, :total], values[:, :, :total]
        return self.keys, self.values

    def share(self) -> None:
        """Somebody else holds these keys and values too: what comes next is written elsewhere."""
        self._room = None

    def reset(self) -> None:
        """Forget everything, the room too."""
        self._room = None
        super().reset()

    def _with_room(self, held: int, total: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Buffers [B, h, at least total, c] that hold what is held."""
        room = self._room
        if room is not None and room[0].shape[2] >= total and (not held or self.keys.data_ptr() == room[0].data_ptr()):
            return room
        made = []
        for old, new in ((self.keys, keys), (self.values, values)):
            buffer = new.new_empty(new.shape[0], new.shape[1], (total // ROOM + 1) * ROOM, new.shape[3])
            if held:
                buffer[:, :, :held] = old
            made.append(buffer)
        self._room = (made[0], made[1])
        return self._room


def new_cache() -> KeyValueCache:
    """An empty cache; layers appear as the base writes them, each keeping all its slots."""
    states = DynamicCache()
    states.layer_class_to_replicate = RoomyLayer
    return KeyValueCache(states=states)


def is_croppable(cache: KeyValueCache) -> bool:
    """Whether ``crop`` is exact: every layer is a plain growing one. An empty cache is."""
    return all(type(layer) is DynamicLayer or getattr(layer, "keeps_all_slots", False) for layer in cache.states.layers)


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


def choose(cache: KeyValueCache, rows: Sequence[int] | Tensor) -> None:
    """Keep only ``rows`` int64 [k] of the slots held, in this order, in place. UnsupportedModel as ``crop``."""
    crop(cache, cache.length)
    at = torch.as_tensor(rows, dtype=torch.int64)
    place = torch.arange(len(at))
    # What stays where it is is not copied.
    stays = int((at != place).int().argmax()) if bool((at != place).any()) else len(at)
    for layer in cache.states.layers:
        moved = at[stays:].to(layer.keys.device)
        for name in ("keys", "values"):
            part = getattr(layer, name)
            setattr(
                layer, name, torch.cat([part[:, :, :stays], part[:, :, moved]], dim=2) if len(moved) else part[:, :, :stays]
            )
    if cache.valid is not None:
        cache.valid = cache.valid[:, at.to(cache.valid.device)]


def move(cache: KeyValueCache, by: Tensor, rotary: Rotary, turned: Sequence[bool]) -> None:
    """Put the keys at other positions, ``by`` int64 [T] further, in place; ``turned`` says which layers have positions.

    What a key and a value have seen stays as it was.
    """
    if not bool(by.any()):
        return
    first = int((by != 0).int().argmax())
    for layer, turns in zip(cache.states.layers, turned, strict=True):
        if turns:
            with torch.no_grad():
                later = rotary.shift(layer.keys[:, :, first:], by[None, first:])
                layer.keys = torch.cat([layer.keys[:, :, :first], later.to(layer.keys.dtype)], dim=2)


def fork(cache: KeyValueCache) -> KeyValueCache:
    """An independent cache with the same content. Shares tensors: writing makes new ones, so this
    costs microseconds."""
    for layer in cache.states.layers:
        if isinstance(layer, RoomyLayer):
            layer.share()
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
