"""GistNet: 32 children become g vectors in the base model's own input embedding space.

The same network makes every level: tokens' embeddings → LOD1, 32 LOD1 gists → LOD2, and so on; it
is told which level it makes.

Shapes: B or N blocks, S children slots (32 for level 1, 32·g above), d width of the base, h inner
width, g vectors per node.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from megacontext.core.node import BLOCK
from megacontext.errors import ConfigError, InvalidInput
from megacontext.models.base_lm import BaseLM
from megacontext.models.blocks import EncoderBlock, key_mask, rope_angles
from megacontext.models.canonical import WIDE, CanonicalBatches, padded, random_mask
from megacontext.models.kv_memory import KeyValueLayout
from megacontext.models.pretrained import LATER, PretrainedNet
from megacontext.models.readouts import READOUTS

EPS = 1e-12


@runtime_checkable
class GistEncoder(Protocol):
    """Whatever turns children into the gists of their parent: GistNet, or a baseline."""

    @property
    def fingerprint(self) -> str:
        """Names the encoder; gists with different fingerprints never mix."""
        ...

    @property
    def vectors(self) -> int:
        """g, vectors per node."""
        ...

    @property
    def width(self) -> int:
        """W, numbers of a stored vector."""
        ...

    @property
    def layout(self) -> KeyValueLayout | None:
        """How key/value gists are laid out; None where a vector is an input embedding of the base."""
        ...

    def encode_blocks(self, base: BaseLM, ids: Tensor, mask: Tensor) -> Tensor:
        """int64 [N, 32] and bool [N, 32] (True = real token) to LOD1 gists float16 [N, g, W]; bits as ``encode_canonical``."""
        ...

    def encode_canonical(self, children: Tensor, mask: Tensor, level: int) -> Tensor:
        """float [N, S, W] and bool [N, S] (True = live child) to float16 [N, g, W], bit for bit
        independent of how blocks are grouped and ordered; ``level`` ≥ 1 is that of the result.
        Without gradient."""
        ...


class Embedded:
    """What encoders have in common whose gists are vectors in the base's embedding space, made from embeddings."""

    layout: KeyValueLayout | None = None

    def encode_blocks(self: GistEncoder, base: BaseLM, ids: Tensor, mask: Tensor) -> Tensor:
        """See ``GistEncoder``."""
        with torch.no_grad():
            return self.encode_canonical(base.embed(ids), mask, 1)


@dataclass(frozen=True, kw_only=True)
class GistNetConfig:
    """``width`` d of the base; ``output_rms`` the base's ``embedding_rms``, to which every gist is
    scaled; ``hidden`` h (None: d); ``levels`` with an embedding of their own (higher ones share the
    last); ``position_stride``, the window positions that each of its gists takes;
    ``base_fingerprint`` of the base it is trained for."""

    width: int
    output_rms: float
    heads: int = 4
    layers: int = 2
    hidden: int | None = None
    mlp_ratio: float = 4.0
    vectors: int = 1
    readout: str = "softmax_pool"
    levels: int = 4
    position_stride: int = field(default=1, metadata=LATER)
    base_fingerprint: str = ""

    def __post_init__(self) -> None:
        if self.readout not in READOUTS:
            raise ConfigError(f"unknown readout {self.readout!r}; choose one of {', '.join(sorted(READOUTS))}")
        if self.inner % (2 * self.heads):
            raise ConfigError(f"inner width {self.inner} must be a multiple of twice the heads ({self.heads})")
        if not 1 <= self.vectors <= BLOCK:
            raise ConfigError(f"vectors must be between 1 and {BLOCK}, not {self.vectors}")
        if min(self.width, self.layers, self.levels, self.position_stride) < 1 or self.output_rms <= 0 or self.mlp_ratio <= 0:
            raise ConfigError("width, layers, levels, position_stride, output_rms and mlp_ratio must be positive")

    @property
    def inner(self) -> int:
        """h."""
        return self.hidden if self.hidden is not None else self.width


class GistNet(Embedded, PretrainedNet):
    """A small bidirectional transformer over one block with a read-out that starts as the mean."""

    kind: ClassVar[str] = "megacontext-gistnet"
    config_class: ClassVar[type[GistNetConfig]] = GistNetConfig

    def __init__(self, config: GistNetConfig) -> None:
        super().__init__(config)
        self.config = config
        inner = config.inner
        self.enter: nn.Module = nn.Linear(config.width, inner) if inner != config.width else nn.Identity()
        self.level = nn.Embedding(config.levels, inner)
        nn.init.zeros_(self.level.weight)
        self.blocks = nn.ModuleList(EncoderBlock(inner, config.heads, config.mlp_ratio) for _ in range(config.layers))
        self.norm = nn.RMSNorm(inner, eps=1e-6)
        self.readout = READOUTS[config.readout](config.width, inner, config.heads, config.vectors)
        self._batches = CanonicalBatches()

    @property
    def vectors(self) -> int:
        """g, vectors per node."""
        return self.config.vectors

    @property
    def width(self) -> int:
        """d."""
        return self.config.width

    def encode(self, children: Tensor, mask: Tensor, level: Tensor) -> Tensor:
        """float [B, S, d], bool [B, S] (True = live child), int64 [B] (≥ 1, of the result) to gists
        [B, g, d], RMS ``output_rms``.

        Masked children have no influence, whatever they hold; a block without live children gives
        zeros. Differentiable.
        """
        # Not a product with the mask: what is masked may be NaN.
        children = torch.where(mask[..., None], children, 0.0).to(self.dtype)
        states = self._states(children, mask, level)
        return rescale(self.readout(children, states, mask), self.config.output_rms)

    def forward(self, children: Tensor, mask: Tensor, level: Tensor) -> Tensor:
        """As ``encode``."""
        return self.encode(children, mask, level)

    @torch.no_grad()
    def encode_canonical(self, children: Tensor, mask: Tensor, level: int) -> Tensor:
        """See ``GistEncoder``. The result is the form that is stored, and from which the next level
        is made."""
        check_children(children, mask, level, self.config.width)
        was_training = self.training
        self.eval()
        slots, width = children.shape[1], self.config.width
        out = torch.empty(len(children), self.vectors, width, dtype=torch.float16)

        def compute(inputs: Tensor, live: Tensor) -> Tensor:
            levels = torch.full((len(inputs),), level, dtype=torch.int64, device=self.device)
            return self.encode(inputs.to(self.device, self.dtype), live.to(self.device), levels)

        def sample(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            numbers = torch.randn(WIDE, slots, width, generator=generator) * self.config.output_rms
            return numbers, random_mask(WIDE, slots, generator)

        there = torch.empty(0, dtype=torch.bool, device=self.device)
        for rows, size in self._batches.slices(len(children), compute, sample, slots, self.dtype, self.device):
            batch = padded(children[rows], size, self.level.weight), padded(mask[rows], size, there)
            out[rows] = compute(*batch)[: rows.stop - rows.start].to("cpu", torch.float16)
        self.train(was_training)
        return out

    def _states(self, children: Tensor, mask: Tensor, level: Tensor) -> Tensor:
        """Block states [B, P + S, h]."""
        states = self.enter(children / self.config.output_rms)
        prefix = self.readout.prefix()
        if prefix is not None:
            states = torch.cat([prefix.expand(len(states), -1, -1), states], dim=1)
            mask = torch.cat([mask.new_ones(len(mask), len(prefix)), mask], dim=1)
        states = states + self.level(level.clamp(1, self.config.levels) - 1)[:, None]
        additive = key_mask(mask, states.dtype)
        cos, sin = rope_angles(states.shape[1], self.config.inner // self.config.heads, states.device)
        for block in self.blocks:
            states = block(states, additive, cos, sin)
        normed: Tensor = self.norm(states)
        return normed


def rescale(vectors: Tensor, rms: float) -> Tensor:
    """Vectors [..., d] scaled to that root mean square; zeros stay zeros."""
    scale = (vectors.float().square().mean(dim=-1, keepdim=True) + EPS).rsqrt()
    return vectors * (scale * rms).to(vectors.dtype)


def check_children(children: Tensor, mask: Tensor, level: int, width: int) -> None:
    """InvalidInput unless children are [N, S, width] with a bool mask [N, S] and a level ≥ 1."""
    if children.dim() != 3 or children.shape[2] != width:
        raise InvalidInput(f"children must be [N, S, {width}], not {list(children.shape)}")
    if mask.shape != children.shape[:2] or mask.dtype != torch.bool:
        raise InvalidInput(f"mask must be bool {list(children.shape[:2])}, not {mask.dtype} {list(mask.shape)}")
    if level < 1:
        raise InvalidInput(f"a gist has level 1 or higher, not {level}")
