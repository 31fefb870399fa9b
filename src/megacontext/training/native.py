"""The native arm: a base whose pretraining includes spans that are replaced by gists.

Each step has plain windows (so that it stays an ordinary language model) and windows in which far
blocks are gists. Base and GistNet learn together, from the base's first step on; both are frozen later.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from megacontext.core.node import BLOCK
from megacontext.models.base_lm import BaseLM
from megacontext.models.encoders import AnyGistNet
from megacontext.training.adapters import Adapters
from megacontext.training.augment import augment
from megacontext.training.batches import draw_batch, longest_window, require_whole, sample_rows
from megacontext.training.config import NativeConfig
from megacontext.training.dataset import Blocks, load_split
from megacontext.training.gist import GistWindows, bound_to, new_gistnet
from megacontext.training.induction import build_base
from megacontext.training.kv_gist import new_lookup_net
from megacontext.training.objective import objective
from megacontext.training.optimizers import set_lr_scale
from megacontext.training.recall import RecallLines
from megacontext.training.tokenizer import save_tokenizer


class NativeTask:
    """Continue a base's pretraining together with a GistNet."""

    def __init__(self, config: NativeConfig) -> None:
        self._config = config
        self._train: Blocks = load_split(config.dataset, "train")
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(str(config.init or config.tokenizer))
        self._lines = RecallLines(self._tokenizer)
        self._base = BaseLM.wrap(self._start(), self._tokenizer)
        if config.loss.needs_teacher:
            require_whole(self._base, longest_window(config.mix, config.mix.far[1], level=2))
        torch.manual_seed(config.seed)
        self._gistnet = self._new_gistnet()
        self._adapters = Adapters(self._base.model, config.lora) if config.lora is not None else None
        self._unfreeze()
        self._module = nn.ModuleDict({"base": self._base.model, "gistnet": self._gistnet})
        self._windows = GistWindows(config.dataset, config.windows, seed=config.seed)

    def _start(self) -> PreTrainedModel:
        config = self._config
        if config.init is not None:
            loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(str(config.init), dtype=torch.float32)
            return loaded
        eos = int(self._tokenizer.eos_token_id)
        return build_base(config.shape, vocab_size=len(self._tokenizer), eos=eos, seed=config.seed)

    def _new_gistnet(self) -> AnyGistNet:
        config = self._config
        if config.lookup is not None:
            return new_lookup_net(self._base, config.lookup, self._train, base_fingerprint="", seed=config.seed)
        return new_gistnet(self._base, config.gistnet, base_fingerprint="")

    def _unfreeze(self) -> None:
        """Wrapping froze the base: train it again, and each part at its own pace."""
        if self._adapters is None:
            self._base.model.requires_grad_(True)
        if self._config.gist_lr:
            set_lr_scale(self._gistnet.parameters(), self._config.gist_lr)
        else:
            self._gistnet.requires_grad_(False)
        set_lr_scale(self._base.model.get_input_embeddings().parameters(), self._config.embedding_lr)

    @property
    def module(self) -> nn.Module:
        """Base and GistNet."""
        return self._module

    def loss(self, step: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean NLL on plain windows plus the configured losses behind gists."""
        config = self._config
        blocks = self._base.context_length // BLOCK
        plain_ids = sample_rows(self._train, rng, rows=config.plain_rows, blocks=blocks)
        augmented = (augment(row, rng, repeats=config.repeats, recall=config.recall, lines=self._lines) for row in plain_ids)
        ids = torch.from_numpy(np.stack(list(augmented))).to(self._base.device)
        logits = self._base.model(input_ids=ids[:, :-1], use_cache=False).logits
        plain = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        noise = config.lookup.noise if config.lookup is not None else 0.0
        batch = draw_batch(self._base, self._gistnet, self._train, rng, config.mix, noise=noise)
        gist, figures = objective(config.loss, batch, self._gistnet, rng)
        return plain + gist, {"plain": float(plain.detach()), "gist": float(gist.detach()), **figures}

    def evaluate(self) -> dict[str, float]:
        """Recovered fractions of gists and of controls on validation windows."""
        return self._windows.evaluate(self._base, self._gistnet)

    def export(self, folder: Path) -> None:
        """Write the base (with its tokenizer) and the GistNet beside it."""
        model = self._base.model if self._adapters is None else self._adapters.merged()
        model.save_pretrained(str(folder / "base"))
        save_tokenizer(self._tokenizer, folder / "base")
        frozen = BaseLM.from_pretrained(folder / "base", dtype=torch.float32)
        bound_to(self._gistnet, frozen.fingerprint).save_pretrained(folder / "gistnet")
