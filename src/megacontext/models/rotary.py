"""Rotary positions of keys that were computed elsewhere: taken off, and put on at another place.

A key that a gist keeps was computed at the place its token had in its block; it is read at the place the gist
has in the window. The turning is the base's own (its ``rotary_emb`` and ``apply_rotary_pos_emb``), so that every
variant of transformers' RoPE (https://arxiv.org/abs/2104.09864) that applies to the first dimensions of a head works.

Shapes: B rows, h heads, m keys, c head width.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megacontext.errors import UnsupportedModel


class Rotary:
    """Turns keys as ``model`` does. A model without rotary positions leaves them as they are."""

    def __init__(self, model: Any) -> None:
        self._angles = next((m for name, m in model.named_modules() if name.endswith("rotary_emb")), None)
        self._apply: Callable[..., tuple[Tensor, Tensor]] | None = None
        if self._angles is not None:
            self._apply = getattr(sys.modules[type(model).__module__], "apply_rotary_pos_emb", None)
            # Families with other angles for each kind of layer ask for the kind (seen with Gemma 3).
            if self._apply is None or "layer_type" in inspect.signature(self._angles.forward).parameters:
                raise UnsupportedModel(
                    f"{model.config.model_type} turns its keys in a way of its own; key/value gists need a family with "
                    "transformers' apply_rotary_pos_emb and the same angles in every layer"
                )

    def put_on(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Keys [B, h, m, c] without positions at ``positions`` int64 [B or 1, m]."""
        return self._turn(keys, positions, forwards=True)

    def take_off(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Keys [B, h, m, c] that stand at ``positions`` int64 [B or 1, m], without them."""
        return self._turn(keys, positions, forwards=False)

    def shift(self, keys: Tensor, by: Tensor) -> Tensor:
        """Keys [B, h, m, c] that stand somewhere, ``by`` int64 [B or 1, m] positions further (or back)."""
        # A turn is linear in its angle: there is nothing to take off first.
        stretch = float(getattr(self._angles, "attention_scaling", 1.0))
        return self._turn(keys, by, forwards=True, stretch=stretch)

    @property
    def turns(self) -> bool:
        """Whether keys have positions of this kind at all."""
        return self._angles is not None

    def _turn(self, keys: Tensor, positions: Tensor, *, forwards: bool, stretch: float = 1.0) -> Tensor:
        if self._angles is None or self._apply is None:
            return keys
        cos, sin = self._angles(keys, positions.to(keys.device))
        size = cos.shape[-1]
        if not forwards:
            # Some variants (YaRN) also stretch: turning back has to undo that.
            stretch = float(getattr(self._angles, "attention_scaling", 1.0)) ** 2
            sin = -sin
        if stretch != 1.0:
            cos, sin = cos / stretch, sin / stretch
        turned, _ = self._apply(keys[..., :size], keys[..., :size], cos, sin)
        return torch.cat([turned, keys[..., size:]], dim=-1)
