"""A base that can look things up from its first step: an induction circuit written into the initial weights.

A small model learns to copy from far back late, if at all, within a small compute budget, and RoPE makes
it harder: rotated content cannot be matched over long distances. So the base is a stock StableLM, whose
rotary positions touch a quarter of each head and leave the rest for content, started as follows.

* Layer 0, heads 0 and 1 look back one and two tokens. With query and key biases ``(b, 0)`` and
  ``b·(cos ωδ, sin ωδ)`` in each rotary plane ω, the score at distance Δ is ``Σ b² cos ω(Δ - δ)``: it
  depends on distance alone and peaks at Δ = δ. Their values copy a random projection of the token.
* Layer 1, head 0 matches its own token against the keys' previous token, head 1 the last two tokens; their
  values copy the token found, so that the tied head predicts it (induction: Olsson et al. 2022,
  https://arxiv.org/abs/2209.11895).

Everything else that writes to the residual stream starts at zero. Nothing is frozen: training is free to
change all of it. Shapes: d width, h head width, c = content dimensions of a head (not rotated).
"""

from __future__ import annotations

import math

import torch
from transformers import StableLmConfig, StableLmForCausalLM
from transformers.models.stablelm.modeling_stablelm import StableLmAttention

from megacontext.training.config import ROTARY_SHARE, BaseShape

_LOOK_BACK_SCORE = 10.0
_MATCH_SCORE = 14.0


def build_base(shape: BaseShape, *, vocab_size: int, eos: int, seed: int = 0) -> StableLmForCausalLM:
    """A StableLM of ``shape`` with the circuit in its weights; deterministic in ``seed``."""
    heads = shape.width // shape.head_dim
    torch.manual_seed(seed)
    model = StableLmForCausalLM(
        StableLmConfig(
            vocab_size=vocab_size,
            hidden_size=shape.width,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=shape.context_length,
            initializer_range=shape.embedding_std,
            tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": shape.rope_theta,
                "partial_rotary_factor": ROTARY_SHARE,
            },
            use_qkv_bias=True,
            bos_token_id=eos,
            eos_token_id=eos,
            dtype="float32",
        )
    )
    with torch.no_grad():
        _calm(model, shape)
        if shape.induction:
            _write_circuit(model, shape)
    return model


def _calm(model: StableLmForCausalLM, shape: BaseShape) -> None:
    """Inputs of each layer at the usual scale, outputs at zero."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            linear.weight.normal_(std=0.5 * shape.width**-0.5)
        attention.o_proj.weight.zero_()
        mlp.down_proj.weight.zero_()


def _write_circuit(model: StableLmForCausalLM, shape: BaseShape) -> None:
    width, head = shape.width, shape.head_dim
    rotary, content = shape.rotary, shape.content
    basis = torch.linalg.qr(torch.randn(width, width)).Q.T
    token, one_back, two_back = basis[:content], basis[content : 2 * content], basis[2 * content : 3 * content]
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    # What layer 0 writes is to be as large as the embedding's part in the same number of dimensions.
    write = shape.embedding_std
    for number, (distance, place) in enumerate(((1, one_back), (2, two_back))):
        at = slice(number * head, number * head + content)
        _look_back(first, number * head, distance, rotary, shape.rope_theta)
        first.v_proj.weight[at] = token
        first.o_proj.weight[:, at] = write * place.T
    half = content // 2
    # The stream holds three parts of equal size, so that each content dimension has about this scale after the norm.
    gain = math.sqrt(_MATCH_SCORE * math.sqrt(head) / content)
    queries = (token, torch.cat([token[:half], one_back[half:]]))
    keys = (one_back, torch.cat([one_back[:half], two_back[half:]]))
    for number, (query, key) in enumerate(zip(queries, keys, strict=True)):
        at = slice(number * head + rotary, (number + 1) * head)
        rows = slice(number * head, (number + 1) * head)
        for linear, read in ((second.q_proj, query), (second.k_proj, key)):
            linear.weight[rows] = 0
            linear.weight[at] = gain * read
        copied = basis[number * head : (number + 1) * head]
        second.v_proj.weight[rows] = copied
        second.o_proj.weight[:, rows] = write * copied.T


def _look_back(attention: StableLmAttention, first: int, distance: int, rotary: int, theta: float) -> None:
    planes = torch.arange(rotary // 2)
    angle = distance * theta ** (-2.0 * planes / rotary)
    head: int = attention.head_dim
    strength = math.sqrt(_LOOK_BACK_SCORE * math.sqrt(head))
    for linear in (attention.q_proj, attention.k_proj):
        linear.weight[first : first + head] = 0
    attention.q_proj.bias[first + planes] = strength
    attention.k_proj.bias[first + planes] = strength * torch.cos(angle)
    attention.k_proj.bias[first + rotary // 2 + planes] = strength * torch.sin(angle)
