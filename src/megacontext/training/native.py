"""The native arm: a base whose pretraining includes spans that are replaced by gists.

Each step has plain windows (so that it stays an ordinary language model) and windows in which far
blocks are gists in random states of focus. Base and GistNet learn together; both are frozen later.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from megacontext.core.node import BLOCK
from megacontext.models.base_lm import BaseLM
from megacontext.models.gistnet import GistNet, GistNetConfig
from megacontext.training.augment import paste_repeats
from megacontext.training.config import NativeConfig
from megacontext.training.dataset import Blocks, load_split
from megacontext.training.gist import GistWindows, bound_to, gist_loss, sample_rows
from megacontext.training.tokenizer import save_tokenizer


class NativeTask:
    """Continue a base's pretraining together with a GistNet."""

    def __init__(self, config: NativeConfig) -> None:
        self._config = config
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(str(config.init))
        self._base = BaseLM.wrap(AutoModelForCausalLM.from_pretrained(str(config.init), dtype=torch.float32))
        torch.manual_seed(config.seed)
        self._gistnet = GistNet(
            GistNetConfig(width=self._base.width, output_rms=self._base.embedding_rms, **config.gistnet.model_dump())
        )
        self._base.model.requires_grad_(True)
        self._module = nn.ModuleDict({"base": self._base.model, "gistnet": self._gistnet})
        self._train: Blocks = load_split(config.dataset, "train")
        self._windows = GistWindows(config.dataset, config.windows, seed=config.seed)

    @property
    def module(self) -> nn.Module:
        """Base and GistNet."""
        return self._module

    def loss(self, step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean NLL on plain windows plus mean NLL behind gists."""
        config = self._config
        blocks = self._base.context_length // BLOCK
        plain_ids = sample_rows(self._train, rng, rows=config.plain_rows, blocks=blocks)
        plain_ids = np.stack([paste_repeats(row, rng, probability=config.repeats) for row in plain_ids])
        ids = torch.from_numpy(plain_ids)
        logits = self._base.model(input_ids=ids[:, :-1], use_cache=False).logits
        plain = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        gist = gist_loss(self._base, self._gistnet, self._train, rng, config)
        return plain + gist, {"plain": float(plain.detach()), "gist": float(gist.detach())}

    def evaluate(self) -> dict[str, float]:
        """Recovered fractions of gists and of controls on validation windows."""
        return self._windows.evaluate(self._base, self._gistnet)

    def export(self, folder: Path) -> None:
        """Write the base (with its tokenizer) and the GistNet beside it."""
        self._base.model.save_pretrained(str(folder / "base"))
        save_tokenizer(self._tokenizer, folder / "base")
        frozen = BaseLM.from_pretrained(folder / "base", dtype=torch.float32)
        bound_to(self._gistnet, frozen.fingerprint).save_pretrained(folder / "gistnet")
