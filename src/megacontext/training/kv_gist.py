"""Key/value gists for a base: which heads read them, and what the network starts from."""

from __future__ import annotations

import torch

from megacontext.models import BaseLM
from megacontext.models.kv_gistnet import KeyValueGistNet, KeyValueGistNetConfig
from megacontext.training.config import LookupShape
from megacontext.training.dataset import Blocks, surprisal
from megacontext.training.lookup_heads import find_layout


def new_lookup_net(base: BaseLM, shape: LookupShape, train: Blocks, *, base_fingerprint: str, seed: int) -> KeyValueGistNet:
    """A fresh network for ``base``: it keeps the rarest tokens behind the rarest, as the training split counts them."""
    layout = find_layout(base, heads=shape.heads, entries=shape.entries)
    torch.manual_seed(seed)
    net = KeyValueGistNet(
        KeyValueGistNetConfig(
            heads=layout.heads,
            entries=layout.entries,
            head_width=layout.head_width,
            width=base.width,
            vocab_size=base.vocab_size,
            base_fingerprint=base_fingerprint,
            **shape.model_dump(exclude={"heads", "entries", "noise"}),
        )
    ).to(base.device)
    net.set_rarity(torch.from_numpy(surprisal(train, base.vocab_size)))
    return net
