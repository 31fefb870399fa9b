"""Names for weights: two models with the same fingerprint give the same numbers (to the loading
dtype).

Values are hashed as float32, so that a lossless conversion (a bf16 checkpoint loaded as float32)
keeps its fingerprint and a lossy one does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# What of a configuration changes the function that the weights compute. A fixed list, since a new
# release of transformers may add fields with defaults, which must not rename every model.
SEMANTIC_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
    "rope_parameters",
    "no_rope_layers",
    "hidden_act",
    "activation_function",
    "rms_norm_eps",
    "layer_norm_epsilon",
    "tie_word_embeddings",
)
SAMPLES = 64
PROBE = "def f(x):\n    return {'a': 1.5e-3}  # naïve Ω 漢字 \t🙂 don't STOP\r\n\n0123456789"


def hash_model(config: Any, parameters: Iterable[tuple[str, Tensor]]) -> str:
    """32 hex digits for a base model: configuration plus a strided sample of every parameter.

    Reads at most ``SAMPLES`` values of each, so that billions of parameters cost milliseconds.
    Retraining, merging or rounding changes it; an edit of single values may not.
    """
    digest = hashlib.blake2b(digest_size=16)
    facts = {key: getattr(config, key) for key in SEMANTIC_KEYS if hasattr(config, key)}
    digest.update(_canonical(facts))
    for name, value in sorted(parameters, key=lambda item: item[0]):
        digest.update(_canonical([name.replace("_orig_mod.", ""), list(value.shape)]))
        flat = value.detach().reshape(-1)
        stride = max(1, flat.numel() // SAMPLES)
        digest.update(_bytes(flat[::stride][:SAMPLES]))
    return digest.hexdigest()


def hash_net(facts: object, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """32 hex digits for one of our own (small) networks: configuration and every value."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(_canonical(facts))
    for name, value in sorted(tensors, key=lambda item: item[0]):
        digest.update(_canonical([name, list(value.shape)]))
        digest.update(_bytes(value.detach()))
    return digest.hexdigest()


def hash_tokenizer(tokenizer: Any) -> str:
    """32 hex digits for what a tokenizer does: its vocabulary, its special ids, and how it cuts a
    difficult probe."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(_canonical(sorted(tokenizer.get_vocab().items())))
    digest.update(_canonical([tokenizer.eos_token_id, tokenizer.pad_token_id]))
    digest.update(_canonical(tokenizer(PROBE, add_special_tokens=False)["input_ids"]))
    return digest.hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str).encode()


def _bytes(value: Tensor) -> bytes:
    return value.to(device="cpu", dtype=torch.float32).contiguous().numpy().tobytes()
