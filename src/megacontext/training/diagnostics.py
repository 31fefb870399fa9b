"""What gists look like while they are trained: their scale, whether they all say the same, how many directions they use.

Shapes: n nodes, g vectors per node, d width of the base.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacontext.errors import InvalidInput


def gist_statistics(gists: Tensor, token_rms: float) -> dict[str, float]:
    """Figures of gists float [n ≥ 2, g, d] of different spans, against tokens of root mean square ``token_rms``.

    * ``norm_ratio``: mean norm of a gist over that of a token; wanted near 1.
    * ``cosine``: mean over pairs of nodes, same place among the g vectors. Near 1 all spans have the same gist.
    * ``cosine_within`` (g > 1): mean over pairs of one node's vectors. Near 1 further vectors bring nothing.
    * ``effective_rank``: exp of the entropy of the normalised singular values of the [n·g, d] matrix, from 1 to
      min(n·g, d): Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality" (EUSIPCO).

    Computed in float64, without gradient. InvalidInput for other shapes and for values that are not finite.
    """
    if gists.dim() != 3 or len(gists) < 2 or gists.numel() == 0:
        raise InvalidInput(f"gists must be [n ≥ 2, g ≥ 1, d ≥ 1], not {list(gists.shape)}")
    if token_rms <= 0:
        raise InvalidInput(f"token_rms must be positive, not {token_rms}")
    values = gists.detach().double()
    if not values.isfinite().all():
        raise InvalidInput("gists hold values that are not finite")
    norms = values.norm(dim=-1, keepdim=True)
    unit = values / norms.clamp(min=torch.finfo(values.dtype).tiny)
    figures = {
        "norm_ratio": float(norms.mean()) / (token_rms * values.shape[-1] ** 0.5),
        "cosine": float(_mean_pairwise(unit.transpose(0, 1)).mean()),
        "effective_rank": _effective_rank(values.flatten(0, 1)),
    }
    if values.shape[1] > 1:
        figures["cosine_within"] = float(_mean_pairwise(unit).mean())
    return figures


def _mean_pairwise(unit: Tensor) -> Tensor:
    """Mean product of two different rows of unit vectors [..., m, d]: [...]. Linear in m."""
    count = unit.shape[-2]
    together, alone = unit.sum(dim=-2).square().sum(dim=-1), unit.square().sum(dim=(-2, -1))
    return (together - alone) / (count * (count - 1))


def _effective_rank(matrix: Tensor) -> float:
    singular = torch.linalg.svdvals(matrix)
    total = singular.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(singular / total).sum().exp())
