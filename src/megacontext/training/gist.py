"""GistNet by plain next-token NLL through the frozen base, with controls measured as it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from megacontext.core.node import BLOCK
from megacontext.engine.substitution import draw_pattern, encode_nodes, encode_pattern, token_nll
from megacontext.errors import DatasetError
from megacontext.evaluation import arms
from megacontext.evaluation.items import Items, draw_items
from megacontext.evaluation.quality import measure, report, swapped_gists
from megacontext.models import BaseLM, GistEncoder, GistNet, GistNetConfig
from megacontext.training.augment import paste_repeats
from megacontext.training.band import band_nll, draw_bands, needs_far
from megacontext.training.config import GistConfig, GistNetShape, MixConfig, NativeConfig, WindowsConfig
from megacontext.training.dataset import Blocks, load_split
from megacontext.training.priming import freeze_values, prime


def bound_to(gistnet: GistNet, base_fingerprint: str) -> GistNet:
    """The same network, recorded as belonging to the base with that fingerprint."""
    bound = GistNet(replace(gistnet.config, base_fingerprint=base_fingerprint))
    bound.load_state_dict(gistnet.state_dict())
    return bound


def sample_rows(train: Blocks, rng: np.random.Generator, *, rows: int, blocks: int) -> npt.NDArray[np.int64]:
    """``rows`` random stretches of ``blocks``·32 valid tokens: int64 [rows, blocks·32]."""
    length = blocks * BLOCK
    if int(train.fill.sum()) < 4 * length:
        raise DatasetError(f"the training split is shorter than four windows of {length} tokens: add documents")
    found: list[npt.NDArray[np.int64]] = []
    while len(found) < rows:
        tokens = train.tokens(int(rng.integers(len(train))), length)
        if len(tokens) == length:
            found.append(tokens)
    return np.stack(found)


def gist_loss(
    base: BaseLM, gistnet: GistNet, train: Blocks, rng: np.random.Generator, config: NativeConfig | GistConfig
) -> torch.Tensor:
    """Mean NLL of the raw tokens of one batch with substituted spans (weighted, where the mix says so)."""
    if rng.random() < config.mix.banded:
        return _banded_loss(base, gistnet, train, rng, config.mix)
    return _pattern_loss(base, gistnet, train, rng, config.mix)


def _banded_loss(base: BaseLM, gistnet: GistNet, train: Blocks, rng: np.random.Generator, mix: MixConfig) -> torch.Tensor:
    rows = sample_rows(train, rng, rows=mix.rows, blocks=mix.blocks)
    ids = torch.from_numpy(np.stack([paste_repeats(row, rng, probability=mix.repeats) for row in rows])).to(base.device)
    bands = draw_bands(rng, blocks=mix.blocks, group=mix.group)
    embeds = base.embed(ids)
    # Nothing to learn in a frozen GistNet, and its backward pass would only blur the embeddings that it picks.
    with torch.set_grad_enabled(any(parameter.requires_grad for parameter in gistnet.parameters())):
        gists = encode_nodes(gistnet, embeds.view(len(ids), -1, BLOCK, base.width)[:, : bands.gisted], 1)
    nll = band_nll(base, embeds, gists, ids, bands, stride=gistnet.config.position_stride)
    if not mix.far_weight:
        return nll.mean()
    weight = 1.0 + mix.far_weight * needs_far(ids, bands)
    return (nll * weight).sum() / weight.sum()


def _pattern_loss(base: BaseLM, gistnet: GistNet, train: Blocks, rng: np.random.Generator, mix: MixConfig) -> torch.Tensor:
    spans = int(rng.integers(1, mix.most_spans + 1)) if rng.random() < mix.lod2 else 0
    far = int(rng.integers(mix.far[0], mix.far[1] + 1))
    pattern = draw_pattern(rng, far=far, tail=mix.tail, spans=spans, all_gists=mix.all_gists)
    raw_from = (len(pattern.lod) - mix.tail) * BLOCK
    rows = sample_rows(train, rng, rows=mix.rows, blocks=len(pattern.lod))
    # Repeated where the tokens are raw, so that the gists have something to carry that can be looked up.
    rows = np.stack([paste_repeats(row, rng, probability=mix.repeats, longest=64, earliest=raw_from) for row in rows])
    ids = torch.from_numpy(rows).to(base.device)
    pool = encode_pattern(pattern, base.embed(ids), gistnet)
    absolute = bool(rng.random() < mix.absolute)
    return token_nll(
        base, pool, ids, pattern, absolute=absolute, vectors=gistnet.vectors, stride=gistnet.config.position_stride
    ).mean()


def new_gistnet(base: BaseLM, shape: GistNetShape, train: Blocks, *, base_fingerprint: str, seed: int) -> GistNet:
    """A fresh GistNet for ``base``; primed on text of the training split where the shape says so."""
    config = shape.model_dump(exclude={"primed", "frozen_values"})
    gistnet = GistNet(
        GistNetConfig(width=base.width, output_rms=base.embedding_rms, base_fingerprint=base_fingerprint, **config)
    )
    if shape.primed:
        rows = sample_rows(train, np.random.default_rng((seed, 0x9213E)), rows=16, blocks=16)
        prime(gistnet, base, torch.from_numpy(rows).to(base.device), surprisal(train, base.vocab_size).to(base.device))
    if shape.frozen_values:
        freeze_values(gistnet)
    return gistnet


def surprisal(train: Blocks, vocab_size: int) -> Tensor:
    """-log of each token's frequency in the training split (one added to each count): float32 [V], nats."""
    counts = np.bincount(train.ids[np.arange(BLOCK) < train.fill[:, None]], minlength=vocab_size) + 1.0
    return torch.from_numpy(-np.log(counts / counts.sum())).float()


class GistWindows:
    """Validation items and the arms that are watched during training."""

    def __init__(self, dataset: Path, config: WindowsConfig, *, seed: int) -> None:
        self._items = validation_items(dataset, config, seed=seed)

    def evaluate(self, base: BaseLM, encoder: GistEncoder | None) -> dict[str, float]:
        """NLL, and recovered fractions on all and on far-copy tokens, of gists and of their controls."""
        items = self._items
        chosen: dict[str, arms.Arm] = {"full": arms.full, "drop": arms.recency(0)}
        if encoder is not None:
            chosen |= {
                "recency": arms.recency(items.far // BLOCK * encoder.vectors),
                "gist": arms.gist,
                "swapped": arms.with_gists(swapped_gists(items, base, encoder)),
            }
        found = report(measure(base, encoder, items, chosen))
        figures = {name: arm["nll"] for name, arm in found["arms"].items()}
        figures |= {key: found["gate"][key] for key in ("drop_minus_full", "drop_minus_full_far_copy")}
        for name in chosen.keys() - {"full", "drop"}:
            figures[f"recovered/{name}"] = found["arms"][name]["recovered"]
            figures[f"recovered_far_copy/{name}"] = found["arms"][name]["far_copy"]["recovered"]
        return figures


def validation_items(dataset: Path, config: WindowsConfig, *, seed: int) -> Items:
    """The same items for the same configuration and seed."""
    return draw_items(
        load_split(dataset, "validation").histories(),
        far=config.far,
        tail=config.tail,
        horizon=config.horizon,
        count=config.items,
        seed=seed,
    )


class GistTask:
    """Train a GistNet for a frozen base."""

    def __init__(self, config: GistConfig) -> None:
        self._config = config
        self._base = BaseLM.from_pretrained(config.base, dtype=torch.float32)
        self._train = load_split(config.dataset, "train")
        torch.manual_seed(config.seed)
        if config.init is not None:
            self._gistnet = bound_to(GistNet.from_pretrained(config.init), self._base.fingerprint)
            if config.gistnet.frozen_values:
                freeze_values(self._gistnet)
        else:
            self._gistnet = new_gistnet(
                self._base, config.gistnet, self._train, base_fingerprint=self._base.fingerprint, seed=config.seed
            )
        self._windows = GistWindows(config.dataset, config.windows, seed=config.seed)

    @property
    def module(self) -> nn.Module:
        """The GistNet."""
        return self._gistnet

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Mean NLL of the raw tokens behind gists."""
        return gist_loss(self._base, self._gistnet, self._train, rng, self._config), {}

    def evaluate(self) -> dict[str, float]:
        """Recovered fractions of gists and of controls on validation windows."""
        return self._windows.evaluate(self._base, self._gistnet)

    def export(self, folder: Path) -> None:
        """Write the GistNet, bound to the base it was trained for."""
        self._gistnet.save_pretrained(folder)
