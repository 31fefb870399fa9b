"""A GistNet that starts from what its base can read, found by two least-squares fits.

The stream that a base's second layer matches on is mostly linear in the last tokens: ``h_i ≈ A x_i + B x_{i-1} +
C x_{i-2}``. A gist that holds ``x_i + B x_{i-1} + C x_{i-2}`` of a well-chosen place therefore looks to that layer's
induction heads like the place itself. Each pool of the associative read-out gets a subspace that one head reads, so
that the pairs of several places fit into one vector side by side. What layer 0 will add to a gist is taken off
beforehand. Scores start as a fit of how rare a token is (surprisal in nats): rare tokens are what cannot be guessed.

Shapes: d width, V vocabulary, R rows of T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacontext.core.node import BLOCK
from megacontext.errors import UnsupportedModel
from megacontext.models import BaseLM, GistNet
from megacontext.models.readouts import AssociativePool

MATCHING_LAYER = 1
SHARPNESS = 2.0
"""Logits of a score per nat of surprisal: high enough that a pool picks one place, for a mixture is read by no head."""
CUE = 0.7
"""How much the rarity of the token before counts: a frequent cue has many continuations and is mostly wrong."""
OWN_PART = 10.0
"""Logits by which a pool prefers its own part of the block to begin with, so that pools pick different places."""
_RIDGE = 1e-3


@torch.no_grad()
def prime(gistnet: GistNet, base: BaseLM, ids: Tensor, surprisal: Tensor) -> None:
    """Set the start of an associative read-out for ``base``, in place; other read-outs are left alone.

    ``ids`` int64 [R, T] of ordinary text; ``surprisal`` float [V], -log of token frequencies (nats).
    UnsupportedModel where the base's second layer has no ``k_proj`` and ``v_proj``.
    """
    readout = gistnet.readout
    if not isinstance(readout, AssociativePool):
        return
    before, before_that = fit_shift(base, ids)
    width, pools, vectors = base.width, readout.pools, gistnet.vectors
    # Nilpotent for the circuit of ``induction``: what is taken off is not looked back at again.
    clear = torch.eye(width, device=before.device) - before - before_that
    for pool, subspace in enumerate(head_subspaces(base, pools)):
        columns = slice(pool * width, (pool + 1) * width)
        readout.value.weight[:, columns] = clear @ subspace
        readout.before.weight[:, columns] = clear @ subspace @ before
        readout.before_that.weight[:, columns] = clear @ subspace @ before_that
    rarity = SHARPNESS * fit_rarity(base, surprisal)
    readout.direct.weight.copy_(rarity.expand_as(readout.direct.weight))
    readout.direct_before.weight.copy_((CUE * rarity).expand_as(readout.direct.weight))
    count = vectors * pools
    owner = torch.arange(BLOCK) * count // BLOCK
    readout.place.zero_()
    readout.place[owner, torch.arange(BLOCK)] = OWN_PART


def freeze_values(gistnet: GistNet) -> None:
    """What an associative read-out writes stays as it is; what it chooses is trained. Others are left alone.

    A hundred steps of orthogonalised updates turn the maps into noise long before their gradient says anything.
    """
    readout = gistnet.readout
    if isinstance(readout, AssociativePool):
        for part in (readout.value, readout.before, readout.before_that, readout.project):
            part.requires_grad_(False)
        readout.place.requires_grad_(False)


def fit_shift(base: BaseLM, ids: Tensor) -> tuple[Tensor, Tensor]:
    """B and C, float [d, d] each, of ``h_i ≈ A x_i + B x_{i-1} + C x_{i-2}`` behind the first layer."""
    hidden = base.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[1].float()
    embedded = base.embed(ids).float()
    width = base.width
    inputs = torch.cat([embedded[:, 2:], embedded[:, 1:-1], embedded[:, :-2]], dim=-1).reshape(-1, 3 * width)
    solution = _ridge(inputs, hidden[:, 2:].reshape(-1, width))
    return solution[width : 2 * width].T, solution[2 * width :].T


def fit_rarity(base: BaseLM, surprisal: Tensor) -> Tensor:
    """The direction float [d] along which embeddings tell their ``surprisal`` (nats, up to a constant)."""
    embedded = base.embed(torch.arange(len(surprisal))[None])[0].float()
    return _ridge(embedded - embedded.mean(dim=0), (surprisal - surprisal.mean())[:, None])[:, 0]


def head_subspaces(base: BaseLM, pools: int) -> list[Tensor]:
    """For each pool, the projector float [d, d] onto what one head of the matching layer reads as key and value.

    At most d / pools dimensions each, the strongest ones.
    """
    attention = dict(base.model.named_modules()).get(f"model.layers.{MATCHING_LAYER}.self_attn")
    if attention is None or not hasattr(attention, "k_proj") or not hasattr(attention, "v_proj"):
        raise UnsupportedModel(f"{base.family}: an associative read-out is primed from layers with k_proj and v_proj")
    head = int(attention.head_dim)
    keys, values = (linear.weight.float() for linear in (attention.k_proj, attention.v_proj))
    found = []
    for pool in range(pools):
        rows = torch.arange(head) + pool * head % len(keys)
        read = torch.cat([keys[rows] / keys[rows].norm(), values[rows] / values[rows].norm()])
        _, strength, axes = torch.linalg.svd(read, full_matrices=False)
        kept = axes[: base.width // pools][strength[: base.width // pools] > 1e-4 * strength[0]]
        found.append(kept.T @ kept)
    return found


def _ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """Least squares float [n, k] → [n, m] with a little shrinkage: [k, m]."""
    gram = inputs.T @ inputs
    shrink = _RIDGE * torch.trace(gram) / len(gram)
    solution: Tensor = torch.linalg.solve(gram + shrink * torch.eye(len(gram), device=gram.device), inputs.T @ targets)
    return solution
