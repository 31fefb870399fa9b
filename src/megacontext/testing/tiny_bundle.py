"""A whole product in miniature: a bundle folder with a random base, GistNet and LensNet that belong together.

Made in well under a second; every part is the real one. What it predicts is noise, but all of it moves: gists differ,
scores differ, edits happen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from megacontext.engine.evidence import FEATURES
from megacontext.models.base_lm import BaseLM
from megacontext.models.bi_encoder import BiEncoder, BiEncoderConfig
from megacontext.models.encoders import AnyGistNet
from megacontext.models.gistnet import GistNet, GistNetConfig
from megacontext.models.kv_gistnet import KeyValueGistNet, KeyValueGistNetConfig
from megacontext.models.lensnet import LensNet, LensNetConfig
from megacontext.testing.tiny_models import save_tiny


def save_tiny_bundle(
    folder: str | Path,
    family: str = "llama",
    *,
    seed: int = 0,
    gistnet: bool = True,
    lensnet: bool = True,
    key_value: bool = False,
    pairs: Sequence[str] = (),
) -> Path:
    """Write ``base/``, ``gistnet/`` and ``lensnet/`` to ``folder``, as ``load_bundle`` reads them, and ``dense/``.

    Without a ``gistnet`` there is no ``lensnet`` either; ``key_value`` gists instead of embedded ones; with ``pairs`` the
    tokenizer is another one (see ``byte_tokenizer``). Leaves the global random state as it was.
    """
    target = Path(folder)
    base = BaseLM.from_pretrained(save_tiny(target / "base", family, seed=seed, pairs=pairs))
    if not gistnet:
        return target
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gists = tiny_kv_gistnet(base) if key_value else tiny_gistnet(base)
        gists.save_pretrained(target / "gistnet")
        if lensnet:
            tiny_lensnet(base, gists).save_pretrained(target / "lensnet")
        BiEncoder(BiEncoderConfig(width=base.width, hidden=8, base_fingerprint=base.fingerprint)).save_pretrained(
            target / "dense"
        )
    return target


def tiny_gistnet(base: BaseLM) -> GistNet:
    """A small GistNet for ``base``, with random weights."""
    return GistNet(
        GistNetConfig(
            width=base.width,
            output_rms=base.embedding_rms,
            heads=2,
            layers=1,
            mlp_ratio=1.0,
            levels=2,
            base_fingerprint=base.fingerprint,
        )
    )


def tiny_kv_gistnet(base: BaseLM, **changes: Any) -> KeyValueGistNet:
    """A small network for key/value gists of ``base``, with random weights; every head of its last layer reads them."""
    shape = base.model.config.get_text_config(decoder=True)
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    fields: dict[str, Any] = {
        "heads": tuple((shape.num_hidden_layers - 1, head) for head in range(heads)),
        "entries": 4,
        "head_width": getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads,
        "width": base.width,
        "vocab_size": base.vocab_size,
        "layers": 1,
        "hidden": 16,
        "attention_heads": 2,
        "base_fingerprint": base.fingerprint,
    }
    net = KeyValueGistNet(KeyValueGistNetConfig(**{**fields, **changes})).eval()
    net.set_rarity(torch.rand(base.vocab_size) * 8)
    if net.config.layers:
        torch.nn.init.normal_(net.head.weight)
    return net


def tiny_lensnet(base: BaseLM, gists: AnyGistNet) -> LensNet:
    """A small LensNet for both; its scores are random but not all zero, as those of a fresh one are."""
    lens = LensNet(
        LensNetConfig(
            width=base.width,
            features=len(FEATURES),
            hidden=16,
            heads=2,
            tail=16,
            feature_names=FEATURES,
            base_fingerprint=base.fingerprint,
            gist_fingerprint=gists.fingerprint,
            gist_width=None if gists.layout is None else gists.width,
        )
    )
    # Features are counts, logarithms and ranks; roughly centred, their scores have both signs.
    lens.set_standardisation(torch.full((len(FEATURES),), 3.0), torch.full((len(FEATURES),), 5.0))
    lens.set_linear(torch.randn(len(FEATURES)) * 0.3, 0.0)
    return lens
