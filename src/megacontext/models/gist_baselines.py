"""Gist encoders without training, kept for comparison: what GistNet has to beat.

Shapes: N blocks, S children slots, d width of the base, g vectors per node.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from megacontext.models.fingerprints import hash_net
from megacontext.models.gistnet import Embedded, check_children, rescale


class MeanPoolGist(Embedded):
    """The mean of the live children, scaled to ``output_rms`` as GistNet's output is."""

    vectors = 1

    def __init__(self, width: int, output_rms: float) -> None:
        self.width = width
        self.output_rms = output_rms

    @property
    def fingerprint(self) -> str:
        """Names kind and scale."""
        return hash_net(["mean-pool", self.width, self.output_rms], ())

    @torch.no_grad()
    def encode_canonical(self, children: Tensor, mask: Tensor, level: int) -> Tensor:
        """float [N, S, d], bool [N, S] to float16 [N, 1, d]; see ``GistEncoder``."""
        check_children(children, mask, level, self.width)
        live = torch.where(mask[..., None], children, 0.0).to("cpu", torch.float32)
        counts = mask.sum(dim=1).clamp(min=1).cpu()
        # Slot by slot: a sum over an axis may be split differently for other batch sizes, and would
        # differ in the last bit.
        total = torch.zeros(len(children), self.width)
        for slot in live.unbind(dim=1):
            total += slot
        return rescale(total / counts[:, None], self.output_rms)[:, None].to(torch.float16)


class RandomGist(Embedded):
    """Gaussian vectors of the right scale, the same for the same children: carries no content, only
    the place."""

    def __init__(self, width: int, output_rms: float, *, vectors: int = 1, seed: int = 0) -> None:
        self.width = width
        self.output_rms = output_rms
        self.vectors = vectors
        self.seed = seed

    @property
    def fingerprint(self) -> str:
        """Names kind, scale and seed."""
        return hash_net(["random", self.width, self.output_rms, self.vectors, self.seed], ())

    @torch.no_grad()
    def encode_canonical(self, children: Tensor, mask: Tensor, level: int) -> Tensor:
        """float [N, S, d], bool [N, S] to float16 [N, g, d]; see ``GistEncoder``. Slow: one
        generator per block."""
        check_children(children, mask, level, self.width)
        live = torch.where(mask[..., None], children, 0.0).to("cpu", torch.float32).contiguous()
        rows = [self._row(row.numpy().tobytes(), level) for row in live]
        stacked = torch.stack(rows) if rows else torch.empty(0, self.vectors, self.width)
        return rescale(stacked, self.output_rms).to(torch.float16)

    def _row(self, content: bytes, level: int) -> Tensor:
        digest = hashlib.blake2b(content, digest_size=7, salt=f"{self.seed}:{level}".encode()[:16]).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        return torch.randn(self.vectors, self.width, generator=generator)
