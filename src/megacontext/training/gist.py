"""GistNet for a frozen base, by the losses of a mix behind substituted windows, with controls measured as it learns."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from megacontext.core.node import BLOCK
from megacontext.errors import ConfigError
from megacontext.evaluation import arms
from megacontext.evaluation.gists import GistBank
from megacontext.evaluation.items import Items, draw_items
from megacontext.evaluation.quality import measure, report, swapped_gists
from megacontext.models import BaseLM, GistEncoder, GistNet, GistNetConfig
from megacontext.models.encoders import AnyGistNet, load_gistnet
from megacontext.models.reconstruction import ReconstructionHead
from megacontext.training.batches import draw_batch, longest_window, require_whole
from megacontext.training.config import GistConfig, GistNetShape, WindowsConfig
from megacontext.training.dataset import load_split
from megacontext.training.diagnostics import gist_statistics
from megacontext.training.kv_gist import new_lookup_net
from megacontext.training.objective import frozen_head, objective
from megacontext.training.replay import Replay
from megacontext.training.runtime import device_for

NetT = TypeVar("NetT", bound=AnyGistNet)


def bound_to(gistnet: NetT, base_fingerprint: str) -> NetT:
    """The same network, recorded as belonging to the base with that fingerprint."""
    config: Any = gistnet.config
    bound = type(gistnet)(replace(config, base_fingerprint=base_fingerprint))
    bound.load_state_dict(gistnet.state_dict())
    return bound


def new_gistnet(base: BaseLM, shape: GistNetShape, *, base_fingerprint: str) -> GistNet:
    """A fresh GistNet for ``base``, as the random generator stands."""
    config = GistNetConfig(
        width=base.width, output_rms=base.embedding_rms, base_fingerprint=base_fingerprint, **shape.model_dump()
    )
    return GistNet(config).to(base.device)


class GistWindows:
    """Validation items and the arms that are watched during training."""

    def __init__(self, dataset: Path, config: WindowsConfig, *, seed: int) -> None:
        self._items = validation_items(dataset, config, seed=seed)

    def evaluate(self, base: BaseLM, encoder: GistEncoder | None) -> dict[str, float]:
        """NLL and recovered fractions, on all and on far-copy tokens, of gists and controls; what the gists look like."""
        items = self._items
        bank = GistBank(items, base, encoder) if encoder is not None else None
        chosen: dict[str, arms.Arm] = {"full": arms.full, "drop": arms.recency(0)}
        if encoder is not None:
            chosen |= {
                "recency": arms.recency(items.far // BLOCK * encoder.vectors),
                "gist": arms.gist,
                "swapped": arms.with_gists(swapped_gists(items, base, encoder, bank=bank)),
            }
        found = report(measure(base, encoder, items, chosen, bank=bank))
        figures = {name: arm["nll"] for name, arm in found["arms"].items()}
        figures |= {key: found["gate"][key] for key in ("drop_minus_full", "drop_minus_full_far_copy")}
        for name in chosen.keys() - {"full", "drop"}:
            figures[f"recovered/{name}"] = found["arms"][name]["recovered"]
            figures[f"recovered_far_copy/{name}"] = found["arms"][name]["far_copy"]["recovered"]
        # Their norms and angles say something beside those of tokens only in the space of tokens.
        return figures | (self._looks(base, bank) if bank is not None and bank.encoder.layout is None else {})

    def _looks(self, base: BaseLM, bank: GistBank) -> dict[str, float]:
        """Norm, cosine and effective rank of the far blocks' gists, against the tokens of the same items."""
        items = self._items
        gists = np.concatenate([bank(row)[: items.far // BLOCK] for row in range(len(items))])
        # Of the embeddings as they are now: a base may be measured while it is trained.
        token_rms = base.embed(torch.from_numpy(items.ids)).float().square().mean().sqrt()
        figures = gist_statistics(torch.from_numpy(gists), float(token_rms))
        return {f"gists/{name}": value for name, value in figures.items()}


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
    """Train a GistNet for a frozen base.

    ConfigError where the losses need what the base cannot read or a head that is not there; ModelMismatch where the head
    or the teacher belong to other models. What the teacher's cache lacks is computed on construction.
    """

    def __init__(self, config: GistConfig, *, quiet: bool = True) -> None:
        self._config = config
        self._base = BaseLM.from_pretrained(config.base, dtype=torch.float32, device=device_for(config))
        self._train = load_split(config.dataset, "train")
        torch.manual_seed(config.seed)
        self._gistnet, self._head = self._start()
        self._replay = self._make_replay(quiet=quiet)
        self._windows = GistWindows(config.dataset, config.windows, seed=config.seed)

    def _start(self) -> tuple[AnyGistNet, ReconstructionHead | None]:
        config, base = self._config, self._base
        if config.init is not None:
            found = load_gistnet(config.init)
            if (found.layout is None) != (config.lookup is None):
                kinds = ("key/value", "embedded") if found.layout is not None else ("embedded", "key/value")
                raise ConfigError(f"{config.init} makes {kinds[0]} gists, the configuration is for {kinds[1]} ones: see lookup")
            head = frozen_head(config.init, base, found) if config.loss.reconstruction and isinstance(found, GistNet) else None
            return bound_to(found, base.fingerprint), head
        if config.lookup is not None:
            net = new_lookup_net(base, config.lookup, self._train, base_fingerprint=base.fingerprint, seed=config.seed)
            return net, None
        return new_gistnet(base, config.gistnet, base_fingerprint=base.fingerprint), None

    def _make_replay(self, *, quiet: bool) -> Replay | None:
        config = self._config
        if config.teacher is not None:
            return Replay(config.teacher, self._base, tail=config.mix.tail, quiet=quiet)
        if config.loss.needs_teacher:
            course = config.curriculum
            far, level = (config.mix.far[1], 2) if course is None else (course.far[1], course.levels)
            require_whole(self._base, longest_window(config.mix, far, level=level))
        return None

    @property
    def module(self) -> nn.Module:
        """The GistNet."""
        return self._gistnet

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """The configured losses on one micro-batch of windows, each as ``loss/NAME``, and its ``stage/…``."""
        config = self._config
        stage = config.curriculum.draw(step, config.steps, rng) if config.curriculum is not None else None
        if self._replay is not None and isinstance(self._gistnet, GistNet):
            batch = self._replay.draw(self._gistnet, rng, config.mix, stage)
        else:
            noise = config.lookup.noise if config.lookup is not None else 0.0
            batch = draw_batch(self._base, self._gistnet, self._train, rng, config.mix, stage, noise=noise)
        loss, figures = objective(config.loss, batch, self._gistnet, rng, head=self._head)
        if stage is not None:
            figures |= {f"stage/{name}": float(value) for name, value in asdict(stage).items()}
        return loss, figures

    def evaluate(self) -> dict[str, float]:
        """Recovered fractions of gists and of controls on validation windows."""
        return self._windows.evaluate(self._base, self._gistnet)

    def export(self, folder: Path) -> None:
        """Write the GistNet, bound to the base it was trained for."""
        self._gistnet.save_pretrained(folder)
