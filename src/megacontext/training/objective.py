"""What a micro-batch costs: the losses of a mix, each computed only where it weighs something.

Shapes: B rows, m scored tokens, M gisted spans of a row, K of them that contrast and reconstruction look at, g vectors a
gist, d width, V vocabulary.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from megacontext.core.node import BLOCK
from megacontext.engine.substitution import encode_nodes, span_children
from megacontext.errors import ConfigError
from megacontext.evaluation.reconstruction import load_head, vocabulary
from megacontext.models import BaseLM, GistNet
from megacontext.models.encoders import AnyGistNet
from megacontext.models.reconstruction import ReconstructionHead
from megacontext.training.batches import Batch, IntArray, Reading
from megacontext.training.loss_mix import LossMix
from megacontext.training.losses import combine, contrastive_margin, hidden_pool_loss, kl_to_teacher
from megacontext.training.reconstruction import reconstruction_loss

PLACES = 16
"""Places of a block that are read back in one micro-batch: most of the work is in the vocabulary."""


def objective(
    mix: LossMix, batch: Batch, gistnet: AnyGistNet, rng: np.random.Generator, *, head: ReconstructionHead | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum (scalar, differentiable), and each loss as ``loss/NAME``.

    ``head`` reads tokens back from gists. ConfigError where the mix wants a loss that cannot be computed here.
    """
    with_states = mix.hidden > 0

    @cache
    def student() -> Reading:
        return batch.read(states=with_states)

    @cache
    def teacher() -> Reading:
        return batch.read_whole(states=with_states)

    def kl() -> Tensor:
        return kl_to_teacher(student().logits, batch.teacher or teacher().logits).mean()

    def hidden() -> Tensor:
        ours, theirs = student().states, teacher().states
        assert ours is not None and theirs is not None
        return hidden_pool_loss(ours, theirs, pool=mix.pool)

    terms = {
        "nll": lambda: weighted_nll(student().logits, batch),
        "kl": kl,
        "hidden": hidden,
    }
    if isinstance(gistnet, GistNet):
        net = gistnet
        terms["contrastive"] = lambda: contrast(mix, batch, net, rng)
    if head is not None:
        reader = head
        terms["reconstruction"] = lambda: read_back(mix, batch, reader, rng)
    loss, values = combine(mix, terms)
    return loss, {f"loss/{name}": value for name, value in values.items()}


def weighted_nll(logits: Tensor, batch: Batch) -> Tensor:
    """Mean NLL (nats) of the scored tokens by their weights."""
    nll = F.cross_entropy(logits.mT, batch.targets, reduction="none")
    if batch.weight is None:
        return nll.mean()
    return (nll * batch.weight).sum() / batch.weight.sum()


def contrast(mix: LossMix, batch: Batch, gistnet: GistNet, rng: np.random.Generator) -> Tensor:
    """The margin by which gists are nearer to those of the same spans with tokens masked than to others.

    Others are the chosen gists of the batch and those of the spans beside each one, raw or not.
    """
    at = _chosen(mix, batch, rng)
    if not len(at):
        return batch.gists.sum()  # of nothing: 0
    own = batch.gists[:, torch.from_numpy(at)].flatten(0, 1).flatten(1)
    spans = batch.gisted[at]
    children, live = span_children(batch.embeds, spans, batch.span, batch.live)
    positives = encode_nodes(gistnet, children, 1, mask_some(live, mix.masked, rng))
    # At an edge the span on the other side, twice: it has one neighbour only.
    last = batch.embeds.shape[1] // batch.span - 1
    sides = [np.where(spans > 0, spans - 1, 1), np.where(spans < last, spans + 1, last - 1)]
    beside = [encode_nodes(gistnet, *_level_one(batch, side)) for side in sides]
    neighbours = torch.stack([gists.flatten(0, 1).flatten(1) for gists in beside], dim=1)
    return contrastive_margin(own, positives.flatten(0, 1).flatten(1), margin=mix.margin, neighbours=neighbours)


def _level_one(batch: Batch, spans: IntArray) -> tuple[Tensor, int, Tensor]:
    children, live = span_children(batch.embeds, spans, batch.span, batch.live)
    return children, 1, live


def mask_some(live: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """``live`` bool [B, K, 32] without a random ``share`` of its children; never without all of them."""
    kept = live & torch.from_numpy(rng.random(live.shape) >= share).to(live.device)
    return torch.where(kept.any(dim=-1, keepdim=True), kept, live)


def read_back(mix: LossMix, batch: Batch, head: ReconstructionHead, rng: np.random.Generator) -> Tensor:
    """Mean NLL (nats) of the tokens of some gisted spans, read from their gists by ``head``."""
    at = _chosen(mix, batch, rng)
    places = np.sort(rng.permutation(batch.span)[:PLACES])
    if not len(at):
        return batch.gists.sum()
    spans = batch.gisted[at]
    _, live = span_children(batch.embeds, spans, batch.span, batch.live)
    ids = F.pad(batch.ids.view(len(batch.ids), -1, batch.span)[:, torch.from_numpy(spans)], (0, BLOCK - batch.span))
    gists = batch.gists[:, torch.from_numpy(at)].flatten(0, 1)
    return reconstruction_loss(
        head, gists, ids.flatten(0, 1), live.flatten(0, 1), vocabulary(batch.base), places=torch.from_numpy(places)
    )


def _chosen(mix: LossMix, batch: Batch, rng: np.random.Generator) -> IntArray:
    """Places within ``batch.gisted`` of the spans that are looked at, int64 [K]."""
    count = len(batch.gisted)
    return np.sort(rng.permutation(count)[: mix.nodes])


def frozen_head(folder: Path, base: BaseLM, gistnet: GistNet) -> ReconstructionHead:
    """The head that was trained on the gists of ``gistnet``, which lies in ``folder``, to read with and not to train.

    ConfigError where there is none, ModelMismatch where it was trained on other gists.
    """
    head = load_head(folder, gistnet, base)
    if head is None:
        raise ConfigError(
            f"loss.reconstruction reads with a head, and {folder} has none: train one with megacontext train reconstruct "
            f"--set train_gistnet=false --set init={folder}, and take its model as init"
        )
    return head.to(base.device).requires_grad_(False)
