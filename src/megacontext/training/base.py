"""A small causal LM from scratch, whose use of far context is watched as it learns (the gate)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerFast

from megacontext.models import BaseLM
from megacontext.training.augment import augment
from megacontext.training.config import BaseConfig
from megacontext.training.dataset import Blocks, load_split
from megacontext.training.gist import GistWindows
from megacontext.training.induction import build_base
from megacontext.training.optimizers import set_lr_scale
from megacontext.training.recall import RecallLines
from megacontext.training.tokenizer import save_tokenizer


class BaseTask:
    """Next-token prediction on windows of the training split, half of them with pasted repeats."""

    def __init__(self, config: BaseConfig) -> None:
        self._config = config
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(str(config.tokenizer))
        self._lines = RecallLines(self._tokenizer)
        self._train: Blocks = load_split(config.dataset, "train")
        self._model = build_base(
            config.shape,
            vocab_size=len(self._tokenizer),
            eos=int(self._tokenizer.eos_token_id),
            seed=config.seed,
        )
        set_lr_scale(self._model.get_input_embeddings().parameters(), config.embedding_lr)
        self._windows = GistWindows(config.dataset, config.windows, seed=config.seed)

    @property
    def module(self) -> nn.Module:
        """The base itself."""
        model: nn.Module = self._model
        return model

    def loss(self, step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean NLL over ``batch`` windows of the full context length."""
        config = self._config
        length = config.shape.context_length
        rows: list[npt.NDArray[np.int64]] = []
        while len(rows) < config.batch:
            tokens = self._train.tokens(int(rng.integers(len(self._train))), length + 1)
            if len(tokens) == length + 1:
                rows.append(augment(tokens, rng, repeats=config.repeats, recall=config.recall, lines=self._lines))
        ids = torch.from_numpy(np.stack(rows)).to(self._model.device)
        logits = self._model(input_ids=ids[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()), {}

    def evaluate(self) -> dict[str, float]:
        """The gate: NLL of the horizon with the far context (full) and without it (drop)."""
        figures = self._windows.evaluate(BaseLM.wrap(self._model, self._tokenizer), None)
        # Wrapping froze it.
        self._model.requires_grad_(True)
        return figures

    def export(self, folder: Path) -> None:
        """Write model and tokenizer so that ``AutoModelForCausalLM.from_pretrained`` loads them."""
        self._model.save_pretrained(str(folder))
        save_tokenizer(self._tokenizer, folder)
