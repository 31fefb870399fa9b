"""LensNet: a signed focus score for every entry of the working context. Positive: expand. Negative:
collapse.

Starts as a linear model over standardised hand features (ridge regression on lexical evidence was
the strongest cheap policy), to which a small network adds what entry and tail embeddings tell.
Entries do not attend to each other, only to the tail and to their own mean, so that the cost stays
linear in the window.

Shapes: B windows, n entries, t tail slots (oldest first), F hand features, d width of the base, h
inner width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from megacontext.errors import ConfigError, InvalidInput
from megacontext.models.blocks import EPS, CrossAttention, Mlp, key_mask
from megacontext.models.pretrained import LATER, PretrainedNet
from megacontext.models.readouts import zero_linear

# Standardised features are cut here: one far outlier must not saturate every score.
FEATURE_LIMIT = 8.0
MIN_STD = 1e-6


@dataclass(frozen=True, kw_only=True)
class LensNetConfig:
    """``width`` d of the base; ``features`` F; ``hidden`` h; ``lods`` with an embedding of their
    own (higher ones share the last); ``tail`` slots told apart by their distance to the cursor.
    ``feature_names`` (none, or F of them) guard against features in another order; the fingerprints
    name the base and the GistNet whose gists it reads, vectors of ``gist_width`` W numbers (None: d).

    With no ``layers`` it is the linear model alone, and reads neither gists nor tail. ``unit`` of its scores: "relative", in
    [-1, 1], tells blocks of one moment apart; "nats" is the gain per token that is expected of having an entry raw."""

    width: int
    features: int
    hidden: int = 64
    heads: int = 4
    layers: int = 1
    mlp_ratio: float = 2.0
    lods: int = 8
    tail: int = 128
    feature_names: tuple[str, ...] = ()
    base_fingerprint: str = ""
    gist_fingerprint: str = ""
    gist_width: int | None = field(default=None, metadata=LATER)
    unit: Literal["relative", "nats"] = field(default="relative", metadata=LATER)

    def __post_init__(self) -> None:
        object.__setattr__(self, "feature_names", tuple(self.feature_names))
        if self.hidden % self.heads:
            raise ConfigError(f"hidden {self.hidden} must be a multiple of heads {self.heads}")
        if min(self.width, self.features, self.hidden, self.lods, self.tail) < 1 or self.layers < 0:
            raise ConfigError("width, features, hidden, lods and tail must be positive, layers not negative")
        if self.unit not in ("relative", "nats"):
            raise ConfigError(f"unit must be relative or nats, not {self.unit!r}")
        if self.feature_names and len(self.feature_names) != self.features:
            raise ConfigError(f"{len(self.feature_names)} feature names for {self.features} features")


class LensBlock(nn.Module):
    """Attention to the tail, the entries' mean, and an MLP, each pre-norm and residual."""

    def __init__(self, config: LensNetConfig) -> None:
        super().__init__()
        width = config.hidden
        self.attention_norm = nn.RMSNorm(width, eps=EPS)
        self.attention = CrossAttention(width, config.heads)
        self.mean_norm = nn.RMSNorm(width, eps=EPS)
        self.mean = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=EPS)
        self.mlp = Mlp(width, config.mlp_ratio)

    def forward(self, x: Tensor, tail: Tensor, tail_mask: Tensor, shares: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), tail, tail_mask)
        x = x + self.mean((self.mean_norm(x) * shares).sum(dim=1, keepdim=True))
        result: Tensor = x + self.mlp(self.mlp_norm(x))
        return result


class LensNet(PretrainedNet):
    """Scores [B, n] from features, embeddings and levels of the entries, given the tail; see ``LensNetConfig.unit``."""

    kind: ClassVar[str] = "megacontext-lensnet"
    config_class: ClassVar[type[LensNetConfig]] = LensNetConfig

    def __init__(self, config: LensNetConfig) -> None:
        super().__init__(config)
        self.config = config
        hidden = config.hidden
        self.feature_mean: Tensor
        self.feature_std: Tensor
        self.register_buffer("feature_mean", torch.zeros(config.features))
        self.register_buffer("feature_std", torch.ones(config.features))
        self.linear = zero_linear(config.features, 1)
        if config.unit == "nats":
            self.calibration: Tensor
            self.register_buffer("calibration", torch.tensor([1.0, 0.0]))
        if not config.layers:
            return
        self.from_features = nn.Linear(config.features, hidden)
        self.embed_norm = nn.RMSNorm(config.width, eps=EPS)
        if config.gist_width is not None:
            self.gist_norm = nn.RMSNorm(config.gist_width, eps=EPS)
        self.from_embeds = nn.Linear(config.gist_width or config.width, hidden, bias=False)
        self.lod = nn.Embedding(config.lods, hidden)
        self.from_tail = nn.Linear(config.width, hidden, bias=False)
        self.distance = nn.Embedding(config.tail, hidden)
        for table in (self.lod, self.distance):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.ModuleList(LensBlock(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(hidden, eps=EPS)
        self.head = zero_linear(hidden, 1)

    @torch.no_grad()
    def set_standardisation(self, mean: Tensor, std: Tensor) -> None:
        """Take mean and standard deviation [F] of the features in the training data; constant
        features are only centred."""
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(std > MIN_STD, std, 1.0))

    @torch.no_grad()
    def set_linear(self, weight: Tensor, bias: float) -> None:
        """Start from a linear model over ``standardise(features)``: weight [F], bias; it gives the
        scores before tanh."""
        self.linear.weight.copy_(weight[None])
        self.linear.bias.fill_(bias)

    @torch.no_grad()
    def calibrate(self, scale: float, offset: float) -> None:
        """Let scores be ``scale · score + offset`` of what they are now; with a unit of nats only."""
        if self.config.unit != "nats":
            raise ConfigError("relative scores are not calibrated: make the LensNet with unit='nats'")
        before = self.calibration.clone()
        self.calibration.copy_(torch.stack([scale * before[0], scale * before[1] + offset]))

    def standardise(self, features: Tensor) -> Tensor:
        """Features [..., F] with mean 0 and deviation 1 over the training data, cut at ±8."""
        return ((features.to(self.dtype) - self.feature_mean) / self.feature_std).clamp(-FEATURE_LIMIT, FEATURE_LIMIT)

    def forward(
        self,
        features: Tensor,
        embeds: Tensor,
        tail: Tensor,
        lod: Tensor,
        *,
        valid: Tensor | None = None,
        tail_valid: Tensor | None = None,
        can_expand: Tensor | None = None,
        can_collapse: Tensor | None = None,
    ) -> Tensor:
        """Features float [B, n, F], embeds [B, n, W] (the entry's gist, or the mean of a raw
        block), tail [B, t, d], lod int64 [B, n] to scores [B, n]. ``valid``/``tail_valid`` bool
        mark real entries and tail slots; scores (in the configured unit) of padding are 0, as are those in a direction that
        ``can_expand``/``can_collapse`` bool [B, n] forbid (None: not masked)."""
        self._check(features, embeds, tail)
        if valid is None:
            valid = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        if tail_valid is None:
            tail_valid = torch.ones(tail.shape[:2], dtype=torch.bool, device=tail.device)
        raw = self._raw(features, embeds, tail, lod, valid, tail_valid)
        scores = raw.tanh() if self.config.unit == "relative" else self.calibration[0] * raw + self.calibration[1]
        return mask_illegal(scores * valid, can_expand, can_collapse)

    def _raw(self, features: Tensor, embeds: Tensor, tail: Tensor, lod: Tensor, valid: Tensor, tail_valid: Tensor) -> Tensor:
        """Scores [B, n] before tanh or calibration."""
        z = torch.where(valid[..., None], self.standardise(features), 0.0)
        if not self.config.layers:
            linear: Tensor = self.linear(z)
            return linear[..., 0]
        embeds = torch.where(valid[..., None], embeds, 0.0).to(self.dtype)
        x = self.from_features(z) + self.from_embeds(self._normed(embeds)) + self.lod(lod.clamp(0, self.config.lods - 1))
        memory = self._tail(torch.where(tail_valid[..., None], tail, 0.0).to(self.dtype))
        tail_mask = key_mask(tail_valid, x.dtype)
        shares = (valid / valid.sum(dim=1, keepdim=True).clamp(min=1)).to(x.dtype)[..., None]
        for block in self.blocks:
            x = block(x, memory, tail_mask, shares)
        score: Tensor = self.linear(z) + self.head(self.norm(x))
        return score[..., 0]

    def _normed(self, gists: Tensor) -> Tensor:
        normed: Tensor = (self.embed_norm if self.config.gist_width is None else self.gist_norm)(gists)
        return normed

    def _tail(self, tail: Tensor) -> Tensor:
        """The tail [B, t, h], told by learned embeddings how far from the cursor each slot is."""
        steps = torch.arange(tail.shape[1] - 1, -1, -1, device=tail.device).clamp(max=self.config.tail - 1)
        result: Tensor = self.from_tail(self.embed_norm(tail)) + self.distance(steps)
        return result

    def _check(self, features: Tensor, embeds: Tensor, tail: Tensor) -> None:
        if features.dim() != 3 or features.shape[2] != self.config.features:
            raise InvalidInput(f"features must be [B, n, {self.config.features}], not {list(features.shape)}")
        gists = [*features.shape[:2], self.config.gist_width or self.config.width]
        if list(embeds.shape) != gists:
            raise InvalidInput(f"embeds must be {gists}, not {list(embeds.shape)}")
        if tail.dim() != 3 or tail.shape[2] != self.config.width or tail.shape[1] == 0:
            raise InvalidInput(f"tail must be [B, t ≥ 1, {self.config.width}], not {list(tail.shape)}")


def mask_illegal(scores: Tensor, can_expand: Tensor | None, can_collapse: Tensor | None) -> Tensor:
    """Scores [B, n] with positive ones of entries that cannot expand, and negative ones of those
    that cannot collapse, set to 0."""
    if can_expand is not None:
        scores = torch.where(can_expand, scores, scores.clamp(max=0.0))
    if can_collapse is not None:
        scores = torch.where(can_collapse, scores, scores.clamp(min=0.0))
    return scores
