"""Attention masks for the base model: always explicit, always additive floats, always 4-D.

transformers reads gaps in the positions as packed sequences when it gets no mask, treats a boolean
4-D mask wrongly in eager attention, and lets one 4-D mask override sliding windows. So nothing is
left to it (all three seen in 5.x).

Shapes: B batch, Q new slots, K all slots (past + new).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megacontext.errors import UnsupportedModel

FULL = "full_attention"
SLIDING = "sliding_attention"
LayerMasks = Tensor | dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class MaskPlan:
    """Which masks a family takes.

    ``kinds`` are the layer types that occur; ``as_dict`` says whether the family takes one mask per
    type; ``window`` is the width of sliding layers in slots (cache slots, not positions).
    """

    kinds: tuple[str, ...]
    as_dict: bool
    window: int | None

    def build(self, allow: Tensor, dtype: torch.dtype, at: Tensor | None = None) -> LayerMasks:
        """From ``allow`` bool [B or 1, Q, K] (True = may attend) to what the family takes, each [B
        or 1, 1, Q, K]. ``at`` int64 [B, Q]: which slots the queries are (None: the last Q)."""
        masks = {kind: additive(self._narrow(allow, kind, at), dtype) for kind in self.kinds}
        return masks if self.as_dict else masks[self.kinds[0]]

    def _narrow(self, allow: Tensor, kind: str, at: Tensor | None) -> Tensor:
        if kind != SLIDING or self.window is None:
            return allow
        query, key = _slots(allow.shape[-2], allow.shape[-1], allow.device)
        return allow & (key > (query if at is None else at[:, :, None]) - self.window)


def plan_for(model: Any) -> MaskPlan:
    """Read from configuration and code which masks ``model`` takes; UnsupportedModel where that
    cannot be told."""
    config = model.config.get_text_config(decoder=True)
    source = _forward_source(model)
    as_dict = "attention_mask, dict)" in source
    slides = "create_sliding_window_causal_mask" in source
    declared = tuple(sorted(set(getattr(config, "layer_types", None) or ())))
    unknown = [kind for kind in declared if kind not in (FULL, SLIDING)]
    if unknown:
        raise UnsupportedModel(
            f"{config.model_type} has layers of type {', '.join(unknown)}; only full and sliding attention can be "
            "driven with a window of gists. Choose a base model with plain attention layers"
        )
    window = getattr(config, "sliding_window", None)
    if as_dict:
        return MaskPlan(kinds=declared or (FULL,), as_dict=True, window=window)
    if len(declared) > 1:
        raise UnsupportedModel(
            f"{config.model_type} mixes {' and '.join(declared)} but takes a single mask, which would override its "
            "sliding windows. Choose another base model"
        )
    kind = SLIDING if slides and window is not None else FULL
    return MaskPlan(kinds=(kind,), as_dict=False, window=window)


def allowed(
    batch: int,
    past: int,
    new: int,
    *,
    valid: Tensor | None,
    custom: Tensor | None,
    device: torch.device,
) -> Tensor:
    """Who may attend to whom: bool [B or 1, new, past + new].

    Causal by slot, only valid keys (``valid`` bool [B, past + new]), narrowed by ``custom`` (bool,
    [B, new, past + new] or without the batch). A slot always sees itself, so that no softmax runs
    over nothing.
    """
    query, key = _slots(new, past + new, device)
    allow = (key <= query)[None]
    if valid is not None:
        allow = allow & valid[:, None, :]
    if custom is not None:
        allow = allow & (custom if custom.dim() == 3 else custom[None])
    if valid is not None or custom is not None:
        allow = allow | (key == query)[None]
    return allow


def additive(allow: Tensor, dtype: torch.dtype) -> Tensor:
    """bool [B, Q, K] to floats [B, 1, Q, K]: 0 where allowed, the dtype's lowest number
    elsewhere."""
    mask = torch.zeros(allow.shape, dtype=dtype, device=allow.device)
    return mask.masked_fill_(~allow, torch.finfo(dtype).min)[:, None]


def _slots(new: int, total: int, device: torch.device) -> tuple[Tensor, Tensor]:
    query = torch.arange(total - new, total, device=device)[:, None]
    return query, torch.arange(total, device=device)[None, :]


def _forward_source(model: Any) -> str:
    """The code of the decoder's forward; empty where Python has no source for it."""
    try:
        return inspect.getsource(inspect.unwrap(type(model.base_model).forward))
    except (OSError, TypeError):
        return ""
