"""The bases that are measured: the bundle that ships, and a Llama of random weights with an untrained GistNet and LensNet.

What the random one predicts and which edits its own LensNet would make says nothing; it does the same work as a trained one.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megacontext.engine.bundle import Bundle, load_bundle
from megacontext.engine.evidence import FEATURES
from megacontext.evaluation.speed_bench.config import RandomLlama
from megacontext.models import BaseLM, GistNet, LensNet
from megacontext.models.gistnet import GistNetConfig
from megacontext.models.lensnet import LensNetConfig

POSITIONS = 1 << 22
"""What a base of random weights was made for, and what one is told that only has to be timed."""


def bundle_of(model: str, random: RandomLlama | None, seed: int) -> Bundle:
    """The bundle ``model``; with ``random`` a Llama of that size with the bundle's tokenizer in its place."""
    bundle = load_bundle(model)
    return bundle if random is None else random_bundle(bundle.tokenizer, random, seed)


def random_bundle(tokenizer: Any, sizes: RandomLlama, seed: int) -> Bundle:
    """Base, GistNet and LensNet from ``seed``; leaves the global random state as it was."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.width,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = BaseLM.wrap(LlamaForCausalLM(config).to(torch.float32), tokenizer)
        gists = GistNet(
            GistNetConfig(
                width=base.width,
                output_rms=base.embedding_rms,
                hidden=sizes.gist_hidden,
                base_fingerprint=base.fingerprint,
            )
        ).eval()
        lens = LensNet(
            LensNetConfig(
                width=base.width,
                features=len(FEATURES),
                feature_names=FEATURES,
                base_fingerprint=base.fingerprint,
                gist_fingerprint=gists.fingerprint,
            )
        ).eval()
    return Bundle(name="random Llama", base=base, gists=gists, lens=lens)


def reaching(base: BaseLM, positions: int) -> BaseLM:
    """The same model, said to know ``positions``: reading beyond what it was made for, to be timed only."""
    twin = copy.copy(base)
    # Read from the configuration once, and kept here.
    twin.__dict__["context_length"] = max(positions, base.context_length)
    return twin


def parameters(base: BaseLM) -> int:
    """How many numbers the weights are, tied ones once."""
    return sum(weight.numel() for weight in base.model.parameters())
