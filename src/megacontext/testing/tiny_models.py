"""Tiny random language models, built from configuration: one per supported family, plus a
byte-level tokenizer.

They need neither network nor GPU and take milliseconds, yet they run the family's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from megacontext.models.base_lm import BaseLM

VOCAB = 258  # 256 bytes, <eos>, <pad>
EOS, PAD = 256, 257
WIDTH = 32
CONTEXT = 512
SLIDING_WINDOW = 24

_SHARED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": EOS,
    # Larger than usual, so that random logits differ by more than rounding.
    "initializer_range": 0.2,
}


def _llama(**changes: Any) -> Any:
    return LlamaConfig(**{**_SHARED, **changes})


def _llama3(**changes: Any) -> Any:
    """Llama 3: positions stretched by frequency, one weight for embeddings and head."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return LlamaConfig(**{**_SHARED, "rope_parameters": rope, "tie_word_embeddings": True, **changes})


def _qwen2(**changes: Any) -> Any:
    sliding = {"use_sliding_window": True, "sliding_window": SLIDING_WINDOW, "max_window_layers": 1}
    return Qwen2Config(**{**_SHARED, **sliding, **changes})


def _qwen3(**changes: Any) -> Any:
    return Qwen3Config(**{**_SHARED, "head_dim": 8, **changes})


def _qwen3_moe(**changes: Any) -> Any:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
    return Qwen3MoeConfig(**{**_SHARED, **experts, **changes})


def _mixtral(**changes: Any) -> Any:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    return MixtralConfig(**{**_SHARED, **experts, **changes})


def _phi3(**changes: Any) -> Any:
    return Phi3Config(**{**_SHARED, "partial_rotary_factor": 0.5, **changes})


def _olmo2(**changes: Any) -> Any:
    return Olmo2Config(**{**_SHARED, **changes})


def _gpt_neox(**changes: Any) -> Any:
    own = {key: value for key, value in _SHARED.items() if key != "num_key_value_heads"}
    return GPTNeoXConfig(**{**own, "hidden_act": "gelu", **changes})


def _smollm3(**changes: Any) -> Any:
    return SmolLM3Config(**{**_SHARED, "no_rope_layer_interval": 2, **changes})


def _mistral(**changes: Any) -> Any:
    return MistralConfig(**{**_SHARED, "head_dim": 8, "sliding_window": SLIDING_WINDOW, **changes})


def _gemma3(**changes: Any) -> Any:
    kinds = ["sliding_attention", "full_attention"]
    return Gemma3TextConfig(
        **{
            **_SHARED,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": kinds,
            **changes,
        }
    )


def _gpt2(**changes: Any) -> Any:
    own = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
    special = {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": PAD, "initializer_range": 0.2}
    return GPT2Config(**{**own, **special, **changes})


FAMILIES: dict[str, Callable[..., Any]] = {
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "llama3": _llama3,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "olmo2": _olmo2,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "smollm3": _smollm3,
}


def tiny_config(family: str, **changes: Any) -> Any:
    """The configuration of a tiny model; ``changes`` override single fields."""
    return FAMILIES[family](**changes)


def tiny_model(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random causal LM of that family (float32, eval mode). Leaves the global random state as it
    was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=torch.float32)
    return model.eval()


def tiny_base(family: str = "llama", *, seed: int = 0, **changes: Any) -> BaseLM:
    """The same, wrapped with the byte tokenizer."""
    return BaseLM.wrap(tiny_model(family, seed=seed, **changes), byte_tokenizer())


def save_tiny(folder: str | Path, family: str = "llama", *, seed: int = 0, pairs: Sequence[str] = (), **changes: Any) -> Path:
    """Write model and tokenizer to ``folder``, as ``BaseLM.from_pretrained`` reads them; ``pairs`` as ``byte_tokenizer``."""
    target, more = Path(folder), len(pairs)
    sizes = {"vocab_size": VOCAB + more, "eos_token_id": EOS + more, "pad_token_id": PAD + more} if more else {}
    tiny_model(family, seed=seed, **{**sizes, **changes}).save_pretrained(target)
    byte_tokenizer(pairs).save_pretrained(target)
    return target


def byte_tokenizer(pairs: Sequence[str] = ()) -> Any:
    """One token per UTF-8 byte and for each of ``pairs`` of ASCII letters, plus ``<pad>`` and ``<eos>``; decodes back without
    loss."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *pairs]
    merges = [(pair[0], pair[1]) for pair in pairs]
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )
