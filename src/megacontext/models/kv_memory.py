"""Key/value gists: a gist as keys and values of the heads that look things up, read beside the raw tokens.

A raw token has one key and one value in every head. What reads far context are few heads (induction heads: Olsson et
al. 2022, https://arxiv.org/abs/2209.11895), and those need many keys of the far past rather than one. So the gist
of a block spends the cache of *one* raw token (layers x heads keys and values) on the keys and values that several of
its tokens have in the heads that look things up. It takes one slot of the window and goes through no layer: the base
sees it in these heads only, and all of its weights and code stay as they are.

transformers lets an attention be registered under a name; ours reads what is active in this thread (``reading``,
``capturing``) and otherwise is its ``sdpa``. That a base really asked for the memory is checked, not hoped for.

Shapes: B rows, m entries, h lookup heads of one layer, c head width, q new slots, k keys. Heads are key/value heads: under
grouped-query attention all query heads of a group read with it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from megacontext.errors import ConfigError, UnsupportedModel

ATTENTION = "megacontext_lookup"
"""Under this name transformers knows the attention below."""

FEW = 8
"""Up to this many new slots, entries and slots are read one after the other; for more, copying them together is cheaper."""


@dataclass(frozen=True, kw_only=True)
class KeyValueLayout:
    """What the numbers of a gist are: ``entries`` R keys and values in each of ``heads`` (layer, key/value head), each
    ``head_width`` c wide, then R scores by which the entries of many gists can be compared. An entry that is all zero is
    none.

    ``reluctance``: nats by which every entry's match is lowered against those of raw tokens. Gists of text that has nothing to
    do with what is read then cost less, and gists that have carry a little less."""

    heads: tuple[tuple[int, int], ...]
    entries: int
    head_width: int
    reluctance: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(sorted((int(layer), int(head)) for layer, head in self.heads)))
        if not self.heads or len(set(self.heads)) != len(self.heads) or min(self.entries, self.head_width) < 1:
            raise ConfigError("a key/value gist needs heads to be read by, each named once, and at least one entry")
        if not 0 <= self.reluctance < float("inf"):
            raise ConfigError(f"reluctance must be a number of nats from 0 on, not {self.reluctance}")

    @property
    def width(self) -> int:
        """Numbers of a gist."""
        return self.entries * (2 * len(self.heads) * self.head_width + 1)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers with lookup heads, ascending."""
        return tuple(sorted({layer for layer, _ in self.heads}))

    def heads_of(self, layer: int) -> list[int]:
        """Lookup heads of a layer, ascending."""
        return [head for at, head in self.heads if at == layer]

    def pack(self, keys: Tensor, values: Tensor, scores: Tensor) -> Tensor:
        """Keys and values [..., R, H, c] of all H heads and scores [..., R] to gists [..., W]."""
        both = torch.stack([keys, values], dim=-2)
        return torch.cat([both.flatten(-4), scores], dim=-1)

    def unpack(self, gists: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gists [..., W] to keys and values [..., R, H, c] and scores [..., R]."""
        numbers, scores = gists[..., : self.width - self.entries], gists[..., self.width - self.entries :]
        both = numbers.reshape(*gists.shape[:-1], self.entries, len(self.heads), 2, self.head_width)
        return both[..., 0, :], both[..., 1, :], scores

    def of_layer(self, entries: Tensor, layer: int) -> Tensor:
        """[..., H, c] of all heads to [..., h, c] of those in one layer."""
        return entries[..., [at for at, (of, _) in enumerate(self.heads) if of == layer], :]


class Memory(Protocol):
    """What lookup heads read beside the slots of a pass."""

    @property
    def layout(self) -> KeyValueLayout:
        """Where it is read."""
        ...

    @property
    def stretches(self) -> Sequence[int] | None:
        """Lengths of consecutive stretches of the slots that see, among slots, only their own stretch, causally, so that
        nothing has to be computed between them; None where the mask says more."""
        ...

    def read(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [B, h, m, c] of the layer's lookup heads, positions put on, and the bias [B or 1, 1, q or 1, m].

        ``keys`` and ``values`` [B, H, k, c] are those of the slots, of all heads.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class StoredMemory:
    """Entries of stored gists: ``keys`` and ``values`` by layer, each [B, h, m, c]; ``bias`` [B, 1, q, m]."""

    layout: KeyValueLayout
    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    bias: Tensor
    stretches: Sequence[int] | None = None

    def read(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Memory``."""
        return self.keys[layer], self.values[layer], self.bias


class _Done(Exception):
    """Everything that was to be captured is there."""


class Capture:
    """Queries [B, Hq, k, c], keys and values [B, H, k, c] of some layers as attention gets them, positions on."""

    def __init__(self, layers: Sequence[int]) -> None:
        self._layers = set(layers)
        self.found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def take(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keep them; ends the pass once nothing is missing."""
        if layer in self._layers:
            self.found[layer] = (queries, keys, values)
            if self._layers == set(self.found):
                raise _Done


@dataclass
class _Reading:
    memory: Memory
    layers: set[int]


_reading: ContextVar[_Reading | None] = ContextVar("megacontext_reading", default=None)
_capture: ContextVar[Capture | None] = ContextVar("megacontext_capture", default=None)


@contextlib.contextmanager
def reading(memory: Memory | None) -> Iterator[None]:
    """Within, lookup heads read ``memory`` too. UnsupportedModel where a pass within did not ask for it in every layer."""
    if memory is None:
        yield
        return
    state = _Reading(memory, set())
    token = _reading.set(state)
    try:
        yield
    finally:
        _reading.reset(token)
    missing = set(memory.layout.layers) - state.layers
    if missing:
        raise UnsupportedModel(f"layer {min(missing)} of the base read no gist: its attention does not take ours")


@contextlib.contextmanager
def capturing(layers: Sequence[int]) -> Iterator[Capture]:
    """Within, one pass gives up the keys and values of ``layers`` and ends once it has them."""
    capture = Capture(layers)
    token = _capture.set(capture)
    try:
        yield capture
    except _Done:
        pass
    finally:
        _capture.reset(token)
    if set(layers) - set(capture.found):
        raise UnsupportedModel("the base's attention does not take ours: its keys and values cannot be had")


def enable(model: Any) -> None:
    """Let ``model`` use this attention. UnsupportedModel for families whose attention is more than scaled dot products."""
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "attn_logit_softcapping", None) is not None or not getattr(model, "_supports_sdpa", False):
        raise UnsupportedModel(f"key/value gists need plain attention, which {config.model_type} does not have")
    if getattr(config, "_attn_implementation", None) != ATTENTION:
        model.set_attn_implementation(ATTENTION)


def lookup_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [B, Hq, q, c], key and value [B, H, k, c] to [B, q, Hq, c]."""
    layer = int(module.layer_idx)
    capture, state = _capture.get(), _reading.get()
    if capture is not None:
        capture.take(layer, query, key, value)
    stretches = state.memory.stretches if state is not None else None
    if state is not None and layer in state.memory.layout.layers:
        state.layers.add(layer)
        mixed = _with_memory(query, key, value, attention_mask, state.memory, layer, options["scaling"])
    elif stretches is not None and options.get("sliding_window") is None:
        mixed = _within_stretches(query, *_for_queries(query, key, value), stretches, options["scaling"])
    else:
        plain: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **options)
        return plain
    return mixed.transpose(1, 2).contiguous(), None


def _for_queries(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [B, H, k, c] as often as there are query heads to a group."""
    group = query.shape[1] // key.shape[1]
    return (key, value) if group == 1 else (key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1))


def _within_stretches(query: Tensor, key: Tensor, value: Tensor, stretches: Sequence[int], scaling: float) -> Tensor:
    """Causal attention [B, H, q, c] of each stretch to itself."""
    parts = zip(*(torch.split(part, list(stretches), dim=2) for part in (query, key, value)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling) for q, k, v in parts], dim=2)


def _with_memory(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, memory: Memory, layer: int, scaling: float
) -> Tensor:
    """Lookup heads over memory and slots, the others over slots: [B, Hq, q, c]."""
    keys, values, bias = memory.read(layer, key, value)
    if mask is None:
        raise UnsupportedModel("a base that reads key/value gists has to be given its mask")
    heads, group = key.shape[1], query.shape[1] // key.shape[1]
    lookup = memory.layout.heads_of(layer)
    others, asking, answering, order = _places(tuple(lookup), heads, group)
    order = order.to(query.device)
    keys, values = keys.to(key.dtype), values.to(value.dtype)
    if query.shape[2] <= FEW and memory.stretches is None:
        looked = _over_both(query[:, asking], key[:, lookup], value[:, lookup], mask, keys, values, bias, scaling)
    else:
        rows = max(len(bias), len(mask))
        both = torch.cat([part.to(mask.dtype).expand(rows, -1, query.shape[2], -1) for part in (bias, mask)], dim=-1)
        all_keys = torch.cat([keys, key[:, lookup]], dim=2)
        all_values = torch.cat([values, value[:, lookup]], dim=2)
        looked = F.scaled_dot_product_attention(
            query[:, asking], *_for_queries(query[:, asking], all_keys, all_values), attn_mask=both, scale=scaling
        )
    if not others:
        return looked[:, order]
    rest = query[:, answering]
    own_keys, own_values = _for_queries(rest, key[:, others], value[:, others])
    if memory.stretches is None:
        plain = F.scaled_dot_product_attention(rest, own_keys, own_values, attn_mask=mask, scale=scaling)
    else:
        plain = _within_stretches(rest, own_keys, own_values, memory.stretches, scaling)
    return torch.cat([looked, plain], dim=1)[:, order]


@functools.cache
def _places(lookup: tuple[int, ...], heads: int, group: int) -> tuple[list[int], list[int], list[int], Tensor]:
    """Heads that do not look up; query heads of those that do and of those that do not; where each query head then stands."""
    others = [head for head in range(heads) if head not in lookup]
    asking, answering = ([head * group + member for head in chosen for member in range(group)] for chosen in (lookup, others))
    return others, asking, answering, torch.tensor(asking + answering).argsort()


def _over_both(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scaling: float
) -> Tensor:
    """Attention [B, h·group, q, c] of few queries over entries and slots, without putting the two together: the entries of
    many gists are far more than a token, and would be copied for every one."""
    batch, asked, new, width = query.shape
    shape = (batch, key.shape[1], asked // key.shape[1], new, width)
    grouped = query.reshape(shape) * scaling
    slots = grouped @ key.transpose(-1, -2)[:, :, None] + mask[:, :, None]
    entries = grouped @ keys.transpose(-1, -2)[:, :, None] + bias.to(mask.dtype)[:, :, None]
    weights = torch.cat([entries, slots], dim=-1).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    of_entries, of_slots = weights[..., : keys.shape[2]], weights[..., keys.shape[2] :]
    mixed: Tensor = of_entries @ values[:, :, None] + of_slots @ value[:, :, None]
    return mixed.reshape(query.shape)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, lookup_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
