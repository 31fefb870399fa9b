"""LensNet on measured utility: scores are gains in nats per token, by regression, ranking and budget neutrality.

Bradley & Terry 1952 for the ranking. The network starts as a ridge regression on the hand features and is kept at its best
validation figure: the share of the best blocks' gain that its own best ones win. At the end its scores are made true: the line
that fits measured gains on validation windows best is built in.

Shapes: n decision points, k blocks of each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from megacontext.core import BLOCK
from megacontext.engine.evidence import FEATURES
from megacontext.engine.policies.lens import Lens
from megacontext.evaluation.items import Items, draw_items
from megacontext.models import BaseLM, LensNet, LensNetConfig
from megacontext.models.encoders import load_gistnet
from megacontext.training.config import LensConfig
from megacontext.training.dataset import load_split
from megacontext.training.labels import RAW, Labelling, Labels, Points, gists_of, measure_labels, replay

FloatArray = npt.NDArray[np.float32]
_GROUPS = 10


class LensTask:
    """Train a LensNet for a frozen base and its GistNet."""

    def __init__(self, config: LensConfig, *, quiet: bool = False) -> None:
        self._config = config
        self._base = BaseLM.from_pretrained(config.base, dtype=torch.float32)
        self._gistnet = load_gistnet(config.gistnet)
        torch.manual_seed(config.seed)
        policy = Lens(LensNet.from_pretrained(config.policy), self._base) if config.policy is not None else None
        learn = Labelling(blocks=config.blocks, on_policy=config.on_policy, policy=policy, seed=config.seed)
        judge = Labelling(blocks=config.windows.far // BLOCK, on_policy=0.0, seed=config.validation_seed)
        self._train = self._points("train", learn, quiet)
        self._validation = self._points("validation", judge, quiet)
        self._lens = self._fresh()
        self._scale = float(self._train[0].gain.std())
        self._start_as_ridge()
        self._best, self._best_state = -np.inf, self._copy()
        self.evaluate()

    def _fresh(self) -> LensNet:
        base, gistnet = self._base, self._gistnet
        return LensNet(
            LensNetConfig(
                width=base.width,
                features=len(FEATURES),
                feature_names=FEATURES,
                base_fingerprint=base.fingerprint,
                gist_fingerprint=gistnet.fingerprint,
                gist_width=None if gistnet.width == base.width else gistnet.width,
                hidden=self._config.hidden,
                layers=self._config.layers,
                unit="nats",
            )
        )

    def _points(self, split: str, labelling: Labelling, quiet: bool) -> tuple[Points, npt.NDArray[np.float16] | None]:
        from megacontext.training.progress import counted

        config = self._config
        items = lens_items(config, split)
        with counted(f"labels ({split})", len(items), quiet=quiet) as advance:
            labels: Labels = measure_labels(
                self._base, self._gistnet, items, labelling, folder=config.labels or config.output, progress=advance
            )
        gists = gists_of(labels, self._base, self._gistnet) if config.layers else None
        return replay(labels, config.interval), gists

    def _start_as_ridge(self) -> None:
        points, _ = self._train
        features = points.features.reshape(-1, len(FEATURES))
        self._lens.set_standardisation(torch.from_numpy(features.mean(0)), torch.from_numpy(features.std(0)))
        z = self._lens.standardise(torch.from_numpy(features)).double()
        target = self._target(points.gain).reshape(-1).double()
        centre, middle = z.mean(0), target.mean()
        gram = (z - centre).T @ (z - centre) + self._config.ridge * torch.eye(z.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(gram, (z - centre).T @ (target - middle))
        self._lens.set_linear((weight * self._scale).float(), float((middle - centre @ weight) * self._scale))

    def _target(self, gain: FloatArray) -> Tensor:
        """Gains in standard deviations, outliers cut: one lucky token must not decide over a thousand others."""
        return (torch.from_numpy(gain) / self._scale).clamp(-self._config.outlier, self._config.outlier)

    @property
    def module(self) -> nn.Module:
        """The LensNet."""
        return self._lens

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Regression on gains, ranking of pairs within a decision point, and neutrality of the window's mean."""
        rows = rng.integers(len(self._train[0]), size=self._config.batch)
        scores = self._scores(self._train, rows) / self._scale
        target = self._target(self._train[0].gain[rows])
        parts = {
            "regression": nn.functional.smooth_l1_loss(scores, target),
            "ranking": ranking_loss(scores, target),
            "neutrality": (scores.mean(dim=1) - target.mean(dim=1)).square().mean(),
        }
        loss = parts["regression"] + self._config.ranking * parts["ranking"] + self._config.neutrality * parts["neutrality"]
        return loss, {name: float(part.detach()) for name, part in parts.items()}

    def evaluate(self) -> dict[str, float]:
        """Share of the oracle's gain won by the best blocks by score, and by recency, suffix and chance; calibration."""
        points = self._validation[0]
        scores = self._scores(self._validation, np.arange(len(points))).detach().numpy()
        rank, suffix = (points.features[..., FEATURES.index(name)] for name in ("rank", "suffix"))
        oracle = top_gain(points.gain, points.gain, positive=True)
        shares = {
            "lens": top_gain(scores, points.gain) / oracle,
            "recency": top_gain(-rank, points.gain) / oracle,
            "suffix": top_gain(suffix - 0.01 * rank, points.gain) / oracle,
            "random": float(points.gain.mean()) * RAW / oracle,
        }
        if shares["lens"] > self._best:
            self._best, self._best_state = shares["lens"], self._copy()
        slope, _ = fitted_line(scores, points.gain)
        figures = {f"share_of_oracle/{name}": float(share) for name, share in shares.items()}
        return figures | {"share_of_oracle/best": float(self._best), "calibration/slope": slope}

    def _scores(self, source: tuple[Points, npt.NDArray[np.float16] | None], rows: npt.NDArray[np.int64]) -> Tensor:
        points, gists = source
        shape = points.blocks[rows].shape
        width = self._lens.config.gist_width or self._lens.config.width
        if gists is None:
            entries, query = torch.zeros(*shape, width), torch.zeros(len(rows), 1, self._base.width)
        else:
            entries = torch.from_numpy(gists[points.item[rows]].astype(np.float32))
            query = self._base.embed(torch.from_numpy(points.query[rows])).detach()
        scores: Tensor = self._lens(
            torch.from_numpy(points.features[rows]), entries, query, torch.ones(shape, dtype=torch.int64)
        )
        return scores

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._lens.state_dict().items()}

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write the LensNet as it was at its best validation figure, calibrated."""
        self._lens.load_state_dict(self._best_state)
        points = self._validation[0]
        scores = self._scores(self._validation, np.arange(len(points))).numpy()
        slope, offset = fitted_line(scores, points.gain)
        # A line that falls would turn every choice round: such scores say nothing, and are left as they are.
        if slope > 0:
            self._lens.calibrate(slope, offset)
        self._lens.save_pretrained(folder)


def lens_items(config: LensConfig, split: str) -> Items:
    """Items whose blocks are labelled; those of training have a longer horizon, which makes labels cheaper."""
    w, train = config.windows, split == "train"
    blocks = load_split(config.dataset, "train" if train else "validation")
    return draw_items(
        blocks.histories(),
        far=w.far,
        tail=w.tail,
        horizon=config.horizon if train else w.horizon,
        count=config.train_items if train else config.validation_items,
        seed=config.seed if train else config.validation_seed,
    )


def ranking_loss(scores: Tensor, target: Tensor) -> Tensor:
    """Bradley–Terry over all pairs of a decision point, weighted by how much more the better one brings: both [n, k]."""
    better = (target[:, :, None] - target[:, None, :]).clamp(min=0)
    ahead = nn.functional.logsigmoid(scores[:, :, None] - scores[:, None, :])
    return -(better * ahead).sum() / better.sum().clamp(min=1e-6)


def top_gain(scores: FloatArray, gain: FloatArray, *, positive: bool = False) -> float:
    """Mean summed gain of the best blocks by ``scores`` [n, k] at each decision point, as many as a quarter of the far context
    holds; with ``positive`` without those that cost."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :RAW]
    won = np.take_along_axis(gain, best, axis=1)
    return float((np.maximum(won, 0) if positive else won).sum(axis=1).mean())


def fitted_line(scores: FloatArray, gain: FloatArray) -> tuple[float, float]:
    """Slope and offset of the least-squares line from scores to measured gains; (0, mean gain) where all scores are equal."""
    x, y = scores.astype(np.float64).ravel(), gain.astype(np.float64).ravel()
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
    return slope, float(y.mean() - slope * x.mean())


def reliability(scores: FloatArray, gain: FloatArray) -> list[tuple[float, float]]:
    """Mean predicted and mean measured gain in ten groups of equal size, by score: what a calibrated score makes equal."""
    order = np.argsort(scores.ravel(), kind="stable")
    groups = np.array_split(order, _GROUPS)
    return [(float(scores.ravel()[group].mean()), float(gain.ravel()[group].mean())) for group in groups if len(group)]
