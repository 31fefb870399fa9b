"""The adapter over a causal LM of the Hugging Face ecosystem: embeddings and positions in, logits
out.

The base stays frozen and its code unchanged. Everything that transformers would guess (mask,
positions, dtype, cache) is passed explicitly.

Shapes: B batch, n slots of the window, d width of the base, V vocabulary, m slots whose logits are
wanted.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from megacontext.errors import InvalidInput, ModelMismatch, UnsupportedModel
from megacontext.models import cache as kv
from megacontext.models import loading, masks
from megacontext.models.batch_cache import RowPass
from megacontext.models.fingerprints import hash_model, hash_tokenizer
from megacontext.models.kv_memory import Memory, enable, reading
from megacontext.models.rotary import Rotary

REQUIRED_ARGUMENTS = ("inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache")
RMS_SAMPLE = 4096


@dataclass(frozen=True, kw_only=True)
class BaseOutput:
    """``logits`` float32 [B, m, V] and the cache that was passed in, extended (None if none
    was)."""

    logits: Tensor
    cache: kv.KeyValueCache | None


class BaseLM:
    """A frozen causal LM, driven by embeddings. Make one with ``from_pretrained`` or ``wrap``."""

    def __init__(self, model: Any, tokenizer: Any | None) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._config = model.config.get_text_config(decoder=True)
        _check_signature(model)
        self._mask_plan = masks.plan_for(model)
        self._slices_logits = "logits_to_keep" in _forward_parameters(model)
        self._checkpointing = False
        # sdpa, since FlashAttention reads gaps in the positions as packed sequences; eager where
        # scores are soft-capped or the family has no sdpa. Both take additive float masks.
        loading.set_attention(model, self._config)
        model.eval()
        model.requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        id_or_folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> BaseLM:
        """Load a hub id or a folder with config.json, weights and tokenizer.

        ``dtype`` None means float32 on CPU (where bf16 is slow) and the checkpoint's own elsewhere;
        ``device`` None means a GPU if there is one. ModelNotFound, CorruptCheckpoint,
        UnsupportedModel.
        """
        target = torch.device(device) if device is not None else loading.default_device()
        model, tokenizer = loading.load(id_or_folder, dtype, target)
        return cls(model, tokenizer)

    @classmethod
    def wrap(cls, model: Any, tokenizer: Any | None = None) -> BaseLM:
        """Take a loaded causal LM; freezes it and puts it into eval mode, in place."""
        return cls(model, tokenizer)

    @cached_property
    def _embedding(self) -> Any:
        # Asked for several times a token, and transformers takes its time to find it.
        return self.model.get_input_embeddings()

    @property
    def width(self) -> int:
        """d, the width of an input embedding."""
        return int(self._embedding.weight.shape[1])

    @property
    def vocab_size(self) -> int:
        """V, as many logits as the head gives."""
        return int(self._config.vocab_size)

    @cached_property
    def context_length(self) -> int:
        """Positions that the base was made for, from its configuration; never guessed."""
        length = getattr(self._config, "max_position_embeddings", None)
        if not isinstance(length, int) or length <= 0:
            raise UnsupportedModel(
                f"the configuration of {self.family} names no max_position_embeddings; set it to the length that the model "
                "was trained for"
            )
        return length

    @property
    def family(self) -> str:
        """The architecture's name in transformers, such as ``llama``."""
        return str(self._config.model_type)

    @property
    def dtype(self) -> torch.dtype:
        """Of embeddings and activations."""
        dtype: torch.dtype = self._embedding.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where embeddings have to be."""
        device: torch.device = self._embedding.weight.device
        return device

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that name these weights; taken once."""
        return hash_model(self._config, self.model.named_parameters())

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; ModelMismatch if the model was wrapped without one."""
        if self._tokenizer is None:
            raise ModelMismatch("this model was wrapped without a tokenizer; pass one to BaseLM.wrap(model, tokenizer)")
        return self._tokenizer

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """32 hex digits that name what the tokenizer does."""
        return hash_tokenizer(self.tokenizer)

    @cached_property
    def embedding_rms(self) -> float:
        """Root mean square of the embedding module's output over (a strided sample of) the
        vocabulary: the scale of a gist."""
        rows = int(self._embedding.weight.shape[0])
        ids = torch.arange(0, rows, max(1, rows // RMS_SAMPLE), device=self.device)
        with torch.no_grad():
            return float(self.embed(ids[None]).float().square().mean().sqrt())

    def embed(self, ids: Tensor) -> Tensor:
        """int64 [B, T] to [B, T, d]: the embedding module's output, which some families scale (not
        rows of its weight)."""
        output: Tensor = self._embedding(ids.to(self.device))
        return output

    def enable_lookup(self) -> None:
        """Let heads read key/value gists (``models.kv_memory``); what is computed without them stays the same.

        UnsupportedModel for families whose attention is more than scaled dot products.
        """
        enable(self.model)

    @cached_property
    def full_attention(self) -> tuple[bool, ...]:
        """Which layers see slots at any distance; the others have sliding windows."""
        layers = int(self._config.num_hidden_layers)
        declared = getattr(self._config, "layer_types", None)
        if declared:
            return tuple(kind == masks.FULL for kind in declared)
        return (self._mask_plan.kinds == (masks.FULL,),) * layers

    @cached_property
    def turned_layers(self) -> tuple[bool, ...]:
        """Which layers turn keys to positions; some families have layers that know none."""
        turned = getattr(self._config, "no_rope_layers", None)  # 1 where there are some, whatever the name says
        return tuple(bool(each) for each in turned) if turned else (True,) * int(self._config.num_hidden_layers)

    @cached_property
    def rotary(self) -> Rotary:
        """How the base turns its keys to their positions. UnsupportedModel for families that do it in a way of their own."""
        return Rotary(self.model)

    def new_cache(self) -> kv.KeyValueCache:
        """An empty key/value cache for ``forward``."""
        return kv.new_cache()

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        valid: Tensor | None = None,
        cache: kv.KeyValueCache | None = None,
        logits_from: int = 0,
        *,
        mask: Tensor | None = None,
        memory: Memory | None = None,
    ) -> BaseOutput:
        """Read ``embeds`` [B, n, d] at ``positions`` int64 [B, n] after whatever ``cache`` holds;
        logits of slots ≥ ``logits_from``.

        ``valid`` bool [B, n] marks slots that others may see (None: all). ``mask`` bool [n, past +
        n] or [B, n, past + n] narrows further who attends to whom (True = may); causality by slot
        and sliding windows stay. ``memory``: what lookup heads read beside the slots
        (``enable_lookup`` first). The cache is extended in place and put back as it was if the pass
        fails. Differentiable with respect to ``embeds``. InvalidInput for shapes and positions that
        cannot be.
        """
        self._check(embeds, positions, valid, cache, logits_from)
        batch, new, _ = embeds.shape
        past = cache.length if cache is not None else 0
        held = valid if cache is None else kv.extend_valid(cache, valid, batch, new, embeds.device)
        allow = masks.allowed(batch, past, new, valid=held, custom=mask, device=embeds.device)
        try:
            with reading(memory):
                mask_of_layers = self._mask_plan.build(allow, embeds.dtype)
                states = cache.states if cache is not None else None
                logits = self._logits(embeds, positions, mask_of_layers, states, new - logits_from)
        except BaseException:
            if cache is not None:
                kv.truncate(cache, past)
            raise
        if cache is not None:
            cache.valid = held
        return BaseOutput(logits=logits, cache=cache)

    __call__ = forward

    def forward_rows(self, embeds: Tensor, positions: Tensor, rows: RowPass, *, memory: Memory | None = None) -> Tensor:
        """Read the next slots of several windows, each behind what its row holds: ``embeds`` [B, q, d] at ``positions`` int64
        [B, q], rows with fewer than q padded in front; logits float32 [B, V] of each row's last slot.

        The rows keep what they held until ``RowStore.settle``, whatever happens here. InvalidInput as ``forward``.
        """
        self._check(embeds, positions, None, None, embeds.shape[1] - 1)
        with reading(memory):
            mask = self._mask_plan.build(rows.allow(), embeds.dtype, rows.at)
            return self._logits(embeds, positions, mask, rows, 1)[:, -1]

    @contextlib.contextmanager
    def gradient_checkpointing(self) -> Iterator[None]:
        """Within, passes without a cache keep only each layer's input for the backward pass: less
        memory, more time."""
        layers = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not layers:
            raise UnsupportedModel(f"{self.family} has no layers that can be checkpointed")
        # The methods were renamed within 5.x; the old names warn.
        enable = getattr(self.model, "activation_checkpointing_enable", None)
        disable = getattr(self.model, "activation_checkpointing_disable", None)
        (enable or self.model.gradient_checkpointing_enable)({"use_reentrant": False})
        # Enabling hooks the embedding so that its output wants a gradient, and disabling leaves the hook behind.
        self.model.disable_input_require_grads()
        self._checkpointing = True
        for layer in layers:
            layer.training = True  # this flag alone: dropout below stays off
        try:
            yield
        finally:
            self._checkpointing = False
            (disable or self.model.gradient_checkpointing_disable)()
            self.model.eval()

    def _logits(self, embeds: Tensor, positions: Tensor, mask: masks.LayerMasks, states: Any | None, last: int) -> Tensor:
        arguments: dict[str, Any] = {
            "inputs_embeds": embeds,
            "position_ids": positions,
            "attention_mask": mask,
            "past_key_values": states,
            "use_cache": states is not None,
        }
        if self._slices_logits:
            arguments["logits_to_keep"] = last
        logits: Tensor = self.model(**arguments).logits
        return logits[:, -last:].float()

    def _check(
        self, embeds: Tensor, positions: Tensor, valid: Tensor | None, cache: kv.KeyValueCache | None, logits_from: int
    ) -> None:
        if embeds.dim() != 3 or embeds.shape[1] == 0 or embeds.shape[2] != self.width:
            raise InvalidInput(f"embeds must be [B, n ≥ 1, {self.width}], not {list(embeds.shape)}")
        if positions.shape != embeds.shape[:2] or positions.is_floating_point():
            raise InvalidInput(
                f"positions must be integers of shape {list(embeds.shape[:2])}, not {positions.dtype} {list(positions.shape)}"
            )
        if valid is not None and (valid.shape != embeds.shape[:2] or valid.dtype != torch.bool):
            raise InvalidInput(f"valid must be bool {list(embeds.shape[:2])}, not {valid.dtype} {list(valid.shape)}")
        if not 0 <= logits_from < embeds.shape[1]:
            raise InvalidInput(f"logits_from must be in [0, {embeds.shape[1]}), not {logits_from}")
        low, high = (int(edge) for edge in torch.aminmax(positions))
        if low < 0 or high >= self.context_length:
            raise InvalidInput(
                f"positions run from {low} to {high}, but {self.family} knows 0 to {self.context_length - 1}; map "
                "the window into that range with a strategy of megacontext.models.positions"
            )
        if cache is not None and self._checkpointing:
            raise InvalidInput("a cache cannot be written under gradient checkpointing; leave its scope first")


def identity_gap(base: BaseLM, ids: Tensor) -> float:
    """Largest difference between the base's own logits for ``ids`` int64 [B, T] and those of a
    window of the same raw tokens.

    The identity that anchors everything: it has to be rounding noise for a family to count as
    supported.
    """
    with torch.no_grad():
        own = base.model(input_ids=ids.to(base.device), use_cache=False).logits.float()
        positions = torch.arange(ids.shape[1], device=base.device).expand(ids.shape)
        ours = base.forward(base.embed(ids), positions).logits
    return float((own - ours).abs().max())


def _forward_parameters(model: Any) -> set[str]:
    return set(inspect.signature(inspect.unwrap(type(model).forward)).parameters)


def _check_signature(model: Any) -> None:
    """Names that a forward does not know are swallowed silently by its ``**kwargs``: so look before
    passing them."""
    missing = [name for name in REQUIRED_ARGUMENTS if name not in _forward_parameters(model)]
    if missing:
        raise UnsupportedModel(
            f"{type(model).__name__}.forward takes no {', '.join(missing)}; a base model has to accept embeddings with "
            "explicit positions, mask and cache"
        )
