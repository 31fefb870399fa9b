"""Muon for hidden matrices, AdamW for everything else, and the learning-rate schedule.

Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. torch ships one, but it
orthogonalises in bfloat16, which CPUs without bf16 units emulate: a step of the base took 15 s
on this project's 2-core machines, 3 to 4 s with ours. Ours keeps the dtype of the weights on CPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: torch.Tensor, *, iterations: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, roughly: quintic Newton-Schulz, float [m, n] → [m, n]."""
    a, b, c = _NEWTON_SCHULZ
    x = matrix if matrix.device.type == "cpu" else matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = (x.mT if tall else x).to(matrix.dtype)
    return result


class Muon(torch.optim.Optimizer):
    """Momentum, Nesterov, then an orthogonalised step; for 2-D parameters inside layers."""

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one update to every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalise(parameter.grad.lerp(state["momentum"], group["momentum"]))
                scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)


def set_lr_scale(parameters: Iterable[nn.Parameter], scale: float) -> None:
    """Let these learn at ``scale`` times the rate of the others."""
    for parameter in parameters:
        parameter.lr_scale = scale  # type: ignore[attr-defined]


def build_optimizers(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    matrix_lr: float,
    other_lr: float,
    weight_decay: float = 0.01,
) -> list[torch.optim.Optimizer]:
    """One Muon over the 2-D weights inside layers, one AdamW over embeddings, norms and biases.

    Parameters with a rate of their own (``set_lr_scale``) form groups of their own.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim == 2 and "embed" not in name and min(parameter.shape) > 1
        (matrices if is_matrix else others).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(_by_scale(matrices, matrix_lr), lr=matrix_lr, weight_decay=weight_decay))
    if others:
        groups = _by_scale(others, other_lr)
        optimizers.append(torch.optim.AdamW(groups, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _by_scale(parameters: list[nn.Parameter], lr: float) -> list[dict[str, Any]]:
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(getattr(parameter, "lr_scale", 1.0), []).append(parameter)
    return [{"params": members, "lr": lr * scale} for scale, members in groups.items()]


def resume_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take over the state of a checkpoint, but keep the rates of this run's configuration.

    So that lowering a rate helps where a run diverged. ValueError where the state is another model's.
    """
    configured = [(group["peak_lr"], group["weight_decay"]) for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, (peak, decay) in zip(optimizer.param_groups, configured, strict=True):
        group["peak_lr"], group["weight_decay"] = peak, decay


def lr_factor(step: int, *, steps: int, warmup: int, decay_from: float) -> float:
    """Warm-up, plateau, linear decay to a twentieth: the share of the peak rate at ``step``."""
    if step < warmup:
        return (step + 1) / warmup
    start = decay_from * steps
    if step < start:
        return 1.0
    return max(0.05, 1.0 - 0.95 * (step - start) / max(1.0, steps - start))
