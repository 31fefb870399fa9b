"""LensNet on measured utility: regression on centred gains plus a pairwise ranking loss.

Bradley & Terry 1952 for the ranking. The network starts as a ridge regression on the hand features and
is kept at its best validation figure: the share of the best four blocks' gain that its own best four win.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from megacontext.core import AllocatorConfig
from megacontext.engine.evidence import FEATURES
from megacontext.evaluation.items import Items, draw_items
from megacontext.models import BaseLM, GistEncoder, LensNet, LensNetConfig
from megacontext.models.encoders import load_gistnet
from megacontext.training.config import LensConfig
from megacontext.training.dataset import load_split
from megacontext.training.labels import Labels, measure_labels

_TOP = 4


class LensTask:
    """Train a LensNet for a frozen base and its GistNet."""

    def __init__(self, config: LensConfig, *, quiet: bool = False) -> None:
        self._config = config
        self._base = BaseLM.from_pretrained(config.base, dtype=torch.float32)
        gistnet = load_gistnet(config.gistnet)
        torch.manual_seed(config.seed)
        self._train = self._labels("train", config.train_items, gistnet, quiet)
        self._validation = self._labels("validation", config.validation_items, gistnet, quiet)
        self._lens = LensNet(
            LensNetConfig(
                width=self._base.width,
                features=len(FEATURES),
                feature_names=FEATURES,
                base_fingerprint=self._base.fingerprint,
                gist_fingerprint=gistnet.fingerprint,
                gist_width=None if gistnet.width == self._base.width else gistnet.width,
                hidden=config.hidden,
            )
        )
        self._scale = float(config.scale * centred(self._train.gain).std())
        self._start_as_ridge()
        self._best, self._best_state = -np.inf, self._copy()

    def _labels(self, split: str, count: int, gistnet: GistEncoder, quiet: bool) -> Labels:
        from megacontext.training.progress import counted

        config = self._config
        items = lens_items(config, split, count)
        with counted(f"labels ({split})", len(items), quiet=quiet) as advance:
            return measure_labels(
                self._base,
                gistnet,
                items,
                interval=config.interval,
                path=config.output / f"labels-{split}.safetensors",
                progress=advance,
            )

    def _start_as_ridge(self) -> None:
        features = self._train.features.reshape(-1, len(FEATURES))
        self._lens.set_standardisation(torch.from_numpy(features.mean(0)), torch.from_numpy(features.std(0)))
        z = self._lens.standardise(torch.from_numpy(features)).double()
        target = torch.from_numpy(centred(self._train.gain).reshape(-1)).double() / self._scale
        target = target.clamp(-2, 2)
        gram = z.T @ z + self._config.ridge * torch.eye(z.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(gram, z.T @ (target - target.mean()))
        self._lens.set_linear(weight.float(), float(target.mean()))

    @property
    def module(self) -> nn.Module:
        """The LensNet."""
        return self._lens

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Regression on tanh of the centred gain, and ranking of pairs within a decision point."""
        rows = rng.integers(len(self._train), size=self._config.batch)
        scores = self._scores(self._train, rows)
        gain = torch.from_numpy(self._train.gain[rows])
        target = torch.tanh((gain - gain.mean(dim=1, keepdim=True)) / self._scale)
        regression = (scores - target).square().mean()
        better = (target[:, :, None] - target[:, None, :]).clamp(min=0)
        ahead = nn.functional.logsigmoid(4 * (scores[:, :, None] - scores[:, None, :]))
        ranking = -(better * ahead).sum() / better.sum().clamp(min=1e-6)
        loss = regression + self._config.ranking * ranking
        return loss, {"regression": float(regression.detach()), "ranking": float(ranking.detach())}

    def evaluate(self) -> dict[str, float]:
        """Share of the oracle's gain won by the best four by score, and by recency, suffix and chance."""
        labels = self._validation
        scores = self._scores(labels, np.arange(len(labels))).detach().numpy()
        names = {name: FEATURES.index(name) for name in ("suffix", "rank")}
        rank, suffix = labels.features[..., names["rank"]], labels.features[..., names["suffix"]]
        oracle = top_gain(labels.gain, labels.gain)
        shares = {
            "lens": top_gain(scores, labels.gain) / oracle,
            "recency": top_gain(-rank, labels.gain) / oracle,
            "suffix": top_gain(suffix - 0.01 * rank, labels.gain) / oracle,
            "random": float(labels.gain.mean()) * _TOP / oracle,
        }
        if shares["lens"] > self._best:
            self._best, self._best_state = shares["lens"], self._copy()
        return {f"share_of_oracle/{name}": float(share) for name, share in shares.items()} | {
            "share_of_oracle/best": float(self._best)
        }

    def _scores(self, labels: Labels, rows: npt.NDArray[np.int64]) -> Tensor:
        query = self._base.embed(torch.from_numpy(labels.query[rows])).detach()
        gists = torch.from_numpy(labels.gists[rows].astype(np.float32))
        scores: Tensor = self._lens(
            torch.from_numpy(labels.features[rows]), gists, query, torch.ones(gists.shape[:2], dtype=torch.int64)
        )
        return scores

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Move and stretch the scores so that ``wanted`` of the blocks pass the allocator's threshold, twice as many zero.

        Gains are skewed: most blocks are worth less than the mean, and regressed scores would leave most of the
        budget unused, though a block that helps little is better than an empty slot.
        """
        scores = self._scores(self._validation, np.arange(len(self._validation))).flatten().double()
        raw = torch.atanh(scores.clamp(-1 + 1e-6, 1 - 1e-6))
        zero, threshold = (float(torch.quantile(raw, 1 - share * self._config.wanted)) for share in (2, 1))
        stretch = math.atanh(AllocatorConfig().expand_threshold) / max(threshold - zero, 1e-6)
        self._lens.linear.bias.sub_(zero)
        for layer in (self._lens.linear, self._lens.head):
            layer.weight.mul_(stretch)
            layer.bias.mul_(stretch)

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._lens.state_dict().items()}

    def export(self, folder: Path) -> None:
        """Write the LensNet as it was at its best validation figure, calibrated."""
        self._lens.load_state_dict(self._best_state)
        self._calibrate()
        self._lens.save_pretrained(folder)


def lens_items(config: LensConfig, split: str, count: int) -> Items:
    """Items whose blocks are labelled."""
    blocks = load_split(config.dataset, "train" if split == "train" else "validation")
    w = config.windows
    return draw_items(blocks.histories(), far=w.far, tail=w.tail, horizon=w.horizon, count=count, seed=config.seed + 1)


def centred(gain: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Gains [n, k] minus the mean of their decision point: what a block is worth against the others."""
    result: npt.NDArray[np.float32] = gain - gain.mean(axis=1, keepdims=True)
    return result


def top_gain(scores: npt.NDArray[np.float32], gain: npt.NDArray[np.float32]) -> float:
    """Mean summed gain of the best four by ``scores`` at each decision point; both [n, k]."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :_TOP]
    return float(np.take_along_axis(gain, best, axis=1).sum(axis=1).mean())
