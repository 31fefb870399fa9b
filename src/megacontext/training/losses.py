"""Losses for gists beside plain NLL, each a function of tensors, and their weighted sum.

All are in nats or relative units per token or per gist, smaller is better, differentiable with respect to the student or
the gists and never to the teacher. Shapes: V vocabulary, K cached logits, B batch, T tokens, n gists, g vectors per gist,
d width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from megacontext.errors import ConfigError, InvalidInput, UnsupportedModel
from megacontext.models import BaseLM
from megacontext.training.loss_mix import LossMix

TOP = 64
"""Logits that a teacher cache keeps of each token."""
_SMALLEST = 1e-9


@dataclass(frozen=True, kw_only=True)
class TopTeacher:
    """The likeliest tokens of a teacher: ``log_probs`` [..., K] (of the whole vocabulary, not of the K) and ``indices``
    int64 [..., K]. What is left of the mass is one bucket. Any float dtype; float16 keeps three digits, which is
    more than distillation needs."""

    log_probs: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        if self.log_probs.shape != self.indices.shape or self.indices.is_floating_point():
            raise InvalidInput(
                f"log_probs {list(self.log_probs.shape)} and integer indices {list(self.indices.shape)} must have one shape"
            )

    @classmethod
    def of(cls, logits: Tensor, k: int = TOP) -> Self:
        """The ``k`` largest of full logits [..., V]; without gradient."""
        values, indices = logits.detach().float().log_softmax(dim=-1).topk(min(k, logits.shape[-1]), dim=-1)
        return cls(log_probs=values, indices=indices)


def kl_to_teacher(student_logits: Tensor, teacher: Tensor | TopTeacher) -> Tensor:
    """KL(teacher ‖ student) of each token, float32 [...], from logits [..., V].

    ``teacher``: full logits [..., V], or the cached top ones, where all other tokens count as one outcome. By the data
    processing inequality that is never more than the full divergence, and it equals it for K = V.
    """
    student = student_logits.float().log_softmax(dim=-1)
    if isinstance(teacher, TopTeacher):
        if teacher.log_probs.shape[:-1] != student.shape[:-1]:
            raise InvalidInput(f"the teacher's tokens {list(teacher.log_probs.shape[:-1])} are not {list(student.shape[:-1])}")
        known = teacher.log_probs.detach().float()
        ours = student.gather(-1, teacher.indices)
        known = torch.cat([known, _log_rest(known)], dim=-1)
        ours = torch.cat([ours, _log_rest(ours)], dim=-1)
    else:
        if teacher.shape != student.shape:
            raise InvalidInput(f"teacher logits {list(teacher.shape)} must have the student's shape {list(student.shape)}")
        known, ours = teacher.detach().float().log_softmax(dim=-1), student
    return (known.exp() * (known - ours)).sum(dim=-1)


def _log_rest(log_probs: Tensor) -> Tensor:
    """Logarithm [..., 1] of what the probabilities leave of 1; rounding may leave less than nothing."""
    return (1.0 - log_probs.exp().sum(dim=-1, keepdim=True)).clamp_min(_SMALLEST).log()


def hidden_pool_loss(student: Tensor, teacher: Tensor, *, pool: int = 8) -> Tensor:
    """Relative squared error of pooled hidden states, a scalar; 0 is perfect, 1 what saying nothing gets.

    ``student`` and ``teacher`` float [B, T, d]: last hidden states of the same T raw tokens behind gists and behind
    the full context. They are averaged over runs of ``pool`` tokens (the last may be shorter), so that what is
    matched is what a stretch is about and not every single token.
    """
    if student.shape != teacher.shape or student.dim() != 3 or not student.shape[1]:
        raise InvalidInput(f"hidden states must be two [B, T ≥ 1, d], not {list(student.shape)} and {list(teacher.shape)}")
    if pool < 1:
        raise ConfigError(f"pool must be at least 1 token, not {pool}")
    target = _pooled(teacher.detach().float(), pool)
    error = (_pooled(student.float(), pool) - target).square().sum(dim=-1)
    return error.mean() / target.square().sum(dim=-1).mean().clamp_min(_SMALLEST)


def _pooled(states: Tensor, pool: int) -> Tensor:
    """Means [B, ⌈T/pool⌉, d] over runs of ``pool`` tokens."""
    batch, tokens, width = states.shape
    whole = tokens // pool * pool
    parts = [states[:, :whole].reshape(batch, -1, pool, width).mean(dim=2)] if whole else []
    if whole < tokens:
        parts.append(states[:, whole:].mean(dim=1, keepdim=True))
    return torch.cat(parts, dim=1)


@contextmanager
def hidden_states(base: BaseLM) -> Iterator[list[Tensor]]:
    """Within, each pass of ``base`` adds its last hidden states [B, m, d] (those that logits are made of) to the list."""
    head = base.model.get_output_embeddings()
    if head is None:
        raise UnsupportedModel(f"{base.family} shows no output head whose inputs could be read")
    caught: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
    try:
        yield caught
    finally:
        handle.remove()


def contrastive_margin(gists: Tensor, positives: Tensor, *, margin: float = 0.2, neighbours: Tensor | None = None) -> Tensor:
    """Hinge on cosines, a scalar: each gist shall be nearer to its own positive than to any negative, by ``margin``.

    ``gists`` and ``positives`` float [n, d]; the positive is another view of the same span (its gist with other tokens
    masked, the mean of its embeddings, or its text's hidden states). Negatives are the other gists of the batch, and
    ``neighbours`` [n, m, d] where given: gists of the spans beside it, the ones most easily taken for each other.
    Only the hardest negative counts (Hermans et al. 2017, https://arxiv.org/abs/1703.07737).
    """
    if gists.dim() != 2 or gists.shape != positives.shape:
        raise InvalidInput(f"gists and positives must be two [n, d], not {list(gists.shape)} and {list(positives.shape)}")
    count = len(gists)
    if count < 2 and neighbours is None:
        raise InvalidInput("one gist alone has no negatives: pass neighbours or a larger batch")
    own, other = F.normalize(gists.float(), dim=-1), F.normalize(positives.float(), dim=-1)
    same = torch.eye(count, dtype=torch.bool, device=gists.device)
    negatives = (own @ own.T).masked_fill(same, -1.0)
    if neighbours is not None:
        beside = F.normalize(neighbours.float(), dim=-1)
        negatives = torch.cat([negatives, torch.einsum("nd,nmd->nm", own, beside)], dim=1)
    near = (own * other).sum(dim=-1)
    return (margin - near + negatives.amax(dim=1)).clamp_min(0.0).mean()


def combine(mix: LossMix, terms: Mapping[str, Callable[[], Tensor]]) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum (scalar) of the wanted ``terms``, and each of them by name; others are not called.

    A term is called once and gives a scalar. ConfigError where the mix wants a loss that this training cannot compute.
    """
    absent = sorted(mix.wanted.keys() - terms.keys())
    if absent:
        raise ConfigError(
            f"loss {', '.join(absent)}: cannot be computed in this training (it has {', '.join(sorted(terms))}): set it to 0"
        )
    values = {name: terms[name]() for name in mix.wanted}
    parts = [weight * values[name] for name, weight in mix.wanted.items()]
    return torch.stack(parts).sum(), {name: float(value.detach()) for name, value in values.items()}
