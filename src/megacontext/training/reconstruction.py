"""A GistNet trained so that its own 32 tokens can be read back from one gist, and the head that reads them.

Blocks are independent and no base runs, so large batches cost little. It says what a vector can hold, not what serves a
continuation: vectors made to be read back can be useless to the base (``EXPERIMENTS.md`` §3). With
``train_gistnet: false`` only the head learns: how much can be read back from the gists of a finished GistNet.

Shapes: n blocks, g vectors per gist, d width of the base, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from megacontext.core.node import BLOCK
from megacontext.errors import ConfigError
from megacontext.evaluation.reconstruction import (
    PIECE,
    BoolArray,
    IntArray,
    guessed,
    reconstructed_share,
    reconstruction,
    vocabulary,
)
from megacontext.models import BaseLM, GistNet, GistNetConfig
from megacontext.models.place_readout import PLACE_SUM
from megacontext.models.reconstruction import FOLDER, ReconstructionConfig, ReconstructionHead
from megacontext.training.config import RunConfig
from megacontext.training.dataset import Blocks, load_split
from megacontext.training.frozen import Frozen
from megacontext.training.progress import counted
from megacontext.training.runtime import device_for

RESULT = "reconstruction.json"
"""Figures over the whole validation split, beside the trained GistNet."""


class EncoderShape(Frozen):
    """Size and read-out of a fresh GistNet: wide inside, and one that keeps the places of a block apart."""

    hidden: int | None = 256
    heads: int = 4
    layers: int = 2
    mlp_ratio: float = 2.0
    vectors: int = 1
    readout: str = PLACE_SUM
    levels: int = 1


class HeadShape(Frozen):
    """Size of the head."""

    hidden: int = 256
    heads: int = 4
    layers: int = 2
    mlp_ratio: float = 2.0


class ReconstructConfig(RunConfig):
    """``train reconstruct``: ``init`` is a GistNet to start from; ``train_gistnet: false`` leaves it as it is.

    Each step takes ``batch`` blocks, of which ``places`` random places are scored. ``watched``: validation blocks
    that are looked at during training. ``report``: measure the whole validation split at the end.
    """

    base: Path
    dataset: Path
    init: Path | None = None
    train_gistnet: bool = True
    gistnet: EncoderShape = EncoderShape()
    head: HeadShape = HeadShape()
    batch: int = Field(default=128, ge=1)
    places: int = Field(default=16, ge=1, le=BLOCK)
    watched: int = Field(default=512, ge=2)
    report: bool = True


def reconstruction_loss(
    head: ReconstructionHead, gists: Tensor, ids: Tensor, live: Tensor, embedding: Tensor, *, places: Tensor | None = None
) -> Tensor:
    """Mean NLL (nats) of the live tokens of blocks, read from their gists alone; differentiable.

    ``gists`` float [n, g, d], ``ids`` int64 [n, 32], ``live`` bool [n, 32], ``embedding`` [V, d] of the base;
    ``places`` int64 [k]: only these are scored, at a share of the cost.
    """
    vectors = head(gists)
    if places is not None:
        vectors, ids, live = vectors[:, places], ids[:, places], live[:, places]
    # Only live places are multiplied with the vocabulary: most of the work is there.
    logits = vectors[live] @ embedding.to(vectors.dtype).T
    return nn.functional.cross_entropy(logits.float(), ids[live])


class ReconstructTask:
    """Train a GistNet and a head, or the head alone."""

    def __init__(self, config: ReconstructConfig, *, quiet: bool = True) -> None:
        self._config, self._quiet = config, quiet
        self._base = BaseLM.from_pretrained(config.base, dtype=torch.float32, device=device_for(config))
        torch.manual_seed(config.seed)
        self._gistnet = self._make_gistnet()
        self._gistnet.requires_grad_(config.train_gistnet)
        self._head = self._make_head("")
        self._head.prime(self._gistnet)
        self._module = nn.ModuleDict({"gistnet": self._gistnet, "head": self._head})
        train = load_split(config.dataset, "train")
        self._ids, self._fill = train.ids, train.fill
        self._head.common.copy_(torch.from_numpy(common_tokens(train, self._base.vocab_size)))
        self._embedding = vocabulary(self._base)
        self._validation = load_split(config.dataset, "validation")
        rows = np.linspace(0, len(self._validation) - 1, min(config.watched, len(self._validation))).astype(np.int64)
        self._watched = _blocks(self._validation.ids[rows], self._validation.fill[rows])

    def _make_gistnet(self) -> GistNet:
        config, base = self._config, self._base
        if config.init is not None:
            return GistNet.from_pretrained(config.init, base_fingerprint=base.fingerprint)
        if not config.train_gistnet:
            raise ConfigError("train_gistnet: false needs init, the GistNet whose gists are read")
        shape = config.gistnet.model_dump()
        return GistNet(
            GistNetConfig(width=base.width, output_rms=base.embedding_rms, base_fingerprint=base.fingerprint, **shape)
        )

    def _make_head(self, gist_fingerprint: str) -> ReconstructionHead:
        return ReconstructionHead(
            ReconstructionConfig(
                width=self._base.width,
                input_rms=self._base.embedding_rms,
                vectors=self._gistnet.vectors,
                base_fingerprint=self._base.fingerprint,
                gist_fingerprint=gist_fingerprint,
                **self._config.head.model_dump(),
            )
        )

    @property
    def module(self) -> nn.Module:
        """GistNet and head."""
        return self._module

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Mean NLL of tokens read back from gists of random training blocks."""
        rows = rng.integers(len(self._fill), size=self._config.batch)
        ids, live = (each.to(self._head.device) for each in _blocks(self._ids[rows], self._fill[rows]))
        # The same places in every block of a batch, so that they are a slice; none is left out for good.
        places = torch.from_numpy(np.sort(rng.permutation(BLOCK)[: self._config.places])).to(self._head.device)
        return reconstruction_loss(self._head, self._encode(ids, live), ids, live, self._embedding, places=places), {}

    def _encode(self, ids: Tensor, live: Tensor) -> Tensor:
        with torch.no_grad():
            children = self._base.embed(ids)
        levels = torch.ones(len(ids), dtype=torch.int64, device=ids.device)
        with torch.set_grad_enabled(self._config.train_gistnet and torch.is_grad_enabled()):
            gists: Tensor = self._gistnet.encode(children, live, levels)
        return gists

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """NLL and shares of tokens read back on watched validation blocks, from own and from swapped gists."""
        ids, live = (each.to(self._head.device) for each in self._watched)
        pieces = [*zip(torch.split(ids, PIECE), torch.split(live, PIECE), strict=True)]
        made = [self._encode(*piece).half().float() for piece in pieces]  # as they are stored
        loss = [
            reconstruction_loss(self._head, gists, *piece, self._embedding) for gists, piece in zip(made, pieces, strict=True)
        ]
        gists, ids, live = torch.cat(made), ids.cpu(), live.cpu()
        swapped = gists.roll(len(gists) // 2, 0)
        return {
            "nll": float(torch.stack(loss).mean()),
            "reconstructed": reconstructed_share(guessed(self._head, self._base, gists), ids, live),
            "reconstructed_swapped": reconstructed_share(guessed(self._head, self._base, swapped), ids, live),
            "reconstructed_common": reconstructed_share(self._head.common.cpu().expand_as(ids), ids, live),
        }

    def export(self, folder: Path) -> None:
        """Write the GistNet, the head in ``reconstruction/`` inside it, and figures over the validation split."""
        self._gistnet.save_pretrained(folder)
        gistnet = GistNet.from_pretrained(folder)
        head = self._make_head(gistnet.fingerprint)
        head.load_state_dict(self._head.state_dict())
        head.save_pretrained(folder / FOLDER)
        if self._config.report:
            base = self._base
            figures = validation_figures(
                self._validation, head.eval(), base, gistnet, seed=self._config.seed, quiet=self._quiet
            )
            (folder / RESULT).write_text(json.dumps(figures, indent=1) + "\n")


def validation_figures(
    split: Blocks, head: ReconstructionHead, base: BaseLM, gistnet: GistNet, *, seed: int, quiet: bool
) -> dict[str, Any]:
    """``evaluation.reconstruction`` over every block of a split, intervals by document."""
    ids, live = _blocks(split.ids, split.fill)
    group = split.document.astype(np.int64)
    with counted("blocks read back", len(ids), quiet=quiet) as count:

        def done(blocks: int) -> None:
            for _ in range(blocks):
                count()

        return reconstruction(head, base, gistnet, ids.numpy(), live.numpy(), group, seed=seed, progress=done)


def common_tokens(split: Blocks, vocab_size: int) -> IntArray:
    """The most frequent token of each place of a block, int64 [32]: the best guess without any gist."""
    live = _live(split.fill)
    counts = [np.bincount(split.ids[live[:, j], j].astype(np.int64), minlength=vocab_size) for j in range(BLOCK)]
    common: IntArray = np.stack(counts).argmax(axis=1).astype(np.int64)
    return common


def _live(fill: npt.NDArray[np.uint8]) -> BoolArray:
    live: BoolArray = np.arange(BLOCK) < fill[:, None]
    return live


def _blocks(ids: npt.NDArray[Any], fill: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Tokens int64 [n, 32] and which of them are real, bool [n, 32]."""
    return torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(_live(fill))
