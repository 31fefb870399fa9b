"""Low-rank adapters (LoRA, by peft) in a base that is otherwise frozen."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedModel

from megacontext.errors import ConfigError
from megacontext.training.config import LoraShape


class Adapters:
    """Puts adapters into ``model``, in place: only they learn. ConfigError where peft is not installed."""

    def __init__(self, model: PreTrainedModel, shape: LoraShape) -> None:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise ConfigError("lora needs peft: pip install 'megacontext[train]'") from error
        config = LoraConfig(r=shape.rank, lora_alpha=shape.alpha, target_modules="all-linear", lora_dropout=0.0)
        self._wrapped: Any = get_peft_model(model, config)

    def merged(self) -> PreTrainedModel:
        """A plain model with the adapters added to its weights; the one that learns stays as it is."""
        model: PreTrainedModel = copy.deepcopy(self._wrapped).merge_and_unload()
        return model
