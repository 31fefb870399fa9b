"""Which losses a GistNet is trained with, and what each weighs."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from megacontext.training.frozen import Frozen

LOSSES = ("nll", "kl", "reconstruction", "hidden", "contrastive")


class LossMix(Frozen):
    """Weights of the losses; one that weighs nothing is not computed.

    ``nll`` of raw tokens behind gists (nats), ``kl`` to the full-context teacher (nats), ``reconstruction`` of a block
    from its gist (nats), ``hidden`` pooled states (relative), ``contrastive`` margin between gists (cosine).

    ``pool``: tokens that hidden states are averaged over. ``margin``: by how much a gist shall be nearer to that of its own
    block with a share ``masked`` of the tokens hidden than to any other. ``nodes``: blocks of a row, at most, that contrast
    and reconstruction look at.
    """

    nll: float = Field(default=1.0, ge=0)
    kl: float = Field(default=0.0, ge=0)
    reconstruction: float = Field(default=0.0, ge=0)
    hidden: float = Field(default=0.0, ge=0)
    contrastive: float = Field(default=0.0, ge=0)
    pool: int = Field(default=8, ge=1)
    margin: float = Field(default=0.2, gt=0)
    masked: float = Field(default=0.15, gt=0, lt=1)
    nodes: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.wanted:
            raise ValueError("every weight is 0: nothing would be learned")
        return self

    @property
    def wanted(self) -> dict[str, float]:
        """The losses that weigh something."""
        return {name: weight for name in LOSSES if (weight := getattr(self, name)) > 0}

    @property
    def needs_teacher(self) -> bool:
        """Whether what the base says behind the full context is asked for."""
        return self.kl > 0 or self.hidden > 0
