"""Which heads of a base look things up: those that, behind a repeated token, look at what followed it before.

The measure is the usual one for induction heads (Olsson et al. 2022, https://arxiv.org/abs/2209.11895): a sequence of random
tokens is read twice, and a head's score is the attention from each token of the second reading to the token that
followed it in the first.

Shapes: B rows, T tokens of a reading, L layers, H key/value heads, c head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megacontext.errors import ConfigError
from megacontext.models.base_lm import BaseLM
from megacontext.models.kv_memory import KeyValueLayout, capturing

ENOUGH = 0.5
"""A head looks things up if it scores this share of the best head's score."""
LEAST = 0.2
"""Below this score no head does."""


@torch.no_grad()
def induction_scores(base: BaseLM, *, rows: int = 8, length: int = 64, seed: int = 0) -> Tensor:
    """Mean attention to what followed the same token before: float [L, H]; of a group of query heads the highest."""
    base.enable_lookup()
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(0, base.vocab_size, (rows, length), generator=generator)
    ids = torch.cat([once, once], dim=1).to(base.device)
    positions = torch.arange(2 * length, device=base.device).expand(rows, -1)
    layers = int(base.model.config.get_text_config(decoder=True).num_hidden_layers)
    with capturing(range(layers)) as captured:
        base.forward(base.embed(ids), positions)
    return torch.stack([_score(*captured.found[layer], length) for layer in range(layers)])


def _score(query: Tensor, key: Tensor, value: Tensor, length: int) -> Tensor:
    """[H] from query [B, Hq, 2T, c] and key [B, H, 2T, c]."""
    group = query.shape[1] // key.shape[1]
    logits = query.float() @ key.float().repeat_interleave(group, dim=1).mT * key.shape[-1] ** -0.5
    future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
    attention = logits.masked_fill(future, -torch.inf).softmax(dim=-1)
    at = torch.arange(length, 2 * length - 1, device=logits.device)
    found: Tensor = attention[:, :, at, at - length + 1].mean(dim=(0, 2))
    return found.view(-1, group).amax(dim=1)


def find_layout(
    base: BaseLM, *, heads: tuple[tuple[int, int], ...] | None = None, entries: int | None = None
) -> KeyValueLayout:
    """A layout for ``base``: ``heads`` (layer, key/value head), or those that look things up; as many ``entries`` as one raw
    token's keys and values pay for, or so many.

    Layers with sliding windows never see the far past, and are left out. ConfigError where no head looks anything up, or one
    of ``heads`` is not there or sees no far past.
    """
    scores = induction_scores(base) * torch.tensor(base.full_attention)[:, None]
    if heads is None:
        if float(scores.max()) < LEAST:
            raise ConfigError(
                f"no head of this base looks things up (the best scores {float(scores.max()):.2f} of 1), so none would read "
                "key/value gists: train it longer, or use gists in its embedding space"
            )
        heads = tuple((int(at[0]), int(at[1])) for at in (scores >= ENOUGH * scores.max()).nonzero())
    for layer, head in heads:
        if not (0 <= layer < scores.shape[0] and 0 <= head < scores.shape[1]) or not base.full_attention[layer]:
            whole = [at for at, full in enumerate(base.full_attention) if full]
            raise ConfigError(
                f"no head {head} of layer {layer} that sees any distance: this base has {scores.shape[1]} key/value heads "
                f"a layer, and full attention in layers {whole}"
            )
    with capturing([heads[0][0]]) as captured:
        base.forward(base.embed(torch.zeros(1, 1, dtype=torch.int64)), torch.zeros(1, 1, dtype=torch.int64))
    width = int(captured.found[heads[0][0]][1].shape[-1])
    return KeyValueLayout(heads=heads, entries=entries or max(1, scores.numel() // len(heads)), head_width=width)
