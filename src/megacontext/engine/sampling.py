"""From logits to a token: greedy, or sampled with temperature and nucleus."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megacontext.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """``temperature`` 0 is greedy; ``top_p`` keeps the smallest set of tokens with that probability.

    ``repetition_penalty`` > 1 divides (multiplies, where negative) the logits of tokens in the tail
    (Keskar et al. 2019, https://arxiv.org/abs/1909.05858).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.repetition_penalty < 1:
            raise ConfigError("temperature must be ≥ 0, top_p in (0, 1] and repetition_penalty ≥ 1")


class Sampler:
    """Draws tokens; the same seed and logits give the same tokens."""

    def __init__(self, config: SamplingConfig) -> None:
        self._config = config
        self._generator = torch.Generator().manual_seed(config.seed)

    @property
    def looks_back(self) -> bool:
        """Whether recent tokens matter."""
        return self._config.repetition_penalty > 1

    def __call__(self, logits: Tensor, recent: Tensor) -> int:
        """A token id from logits float32 [V]; ``recent`` int64 [k] are the tokens that a repetition penalty is for."""
        config = self._config
        logits = logits.float().cpu()
        if config.repetition_penalty > 1 and len(recent):
            seen = logits[recent]
            logits = logits.clone()
            logits[recent] = torch.where(seen > 0, seen / config.repetition_penalty, seen * config.repetition_penalty)
        if config.temperature == 0:
            return int(logits.argmax())
        probabilities = (logits / config.temperature).softmax(dim=-1)
        ranked, order = probabilities.sort(descending=True)
        ranked[ranked.cumsum(0) - ranked >= config.top_p] = 0
        return int(order[torch.multinomial(ranked, 1, generator=self._generator)])
