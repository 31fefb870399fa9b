"""A base that can look things up from its first step: an induction circuit written into the initial weights.

A small model learns to copy from far back late, if at all, within a small compute budget, and RoPE makes
it harder: rotated content cannot be matched over long distances. So the base is a stock StableLM, whose
rotary positions touch a part of each head and leave the rest for content, started as follows.

* The width is divided: token codes live in T = p·h dimensions, p "places" of c dimensions hold what the token before
  was, one more what stood two before, one dimension how rare a token is.
* Layer 0: heads 0 … p-1 look back one token, head p two. With query and key biases ``(b, 0)`` and
  ``b·(cos ωδ, sin ωδ)`` in each rotary plane ω, the score at distance Δ is ``Σ b² cos ω(Δ - δ)``: it
  depends on distance alone and peaks at Δ = δ. Each writes c dimensions of a projection of its own into its place.
* Layer 1: head i < p matches its own token against place i of the keys and copies the i-th h dimensions of the code
  found there; the other heads match the last two tokens (induction: Olsson et al. 2022,
  https://arxiv.org/abs/2209.11895). The tied head predicts what is copied.

On raw text all heads agree. A gist can hold a *different* pair for each head, p of them in one vector, each at full
strength (``priming``): the number of pairs that a vector carries grows with the width.

Everything else that writes to the residual stream starts at zero. Where ``frozen_circuit`` says so, what looks back and
what matches stays as it is, since what GistNet writes relies on it; training is free to change all other weights.
Shapes: d width, h head width, c = content dimensions of a head (not rotated), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, StableLmConfig, StableLmForCausalLM

from megacontext.training.config import BaseShape

LOOK_BACK_SCORE = 100.0
MATCH_SCORE = 14.0
CIRCUIT = "megacontext_circuit"
"""Under this name a model's configuration says that it has the circuit, and so does the folder it is saved to."""
RARE_SHARE = 0.05
"""Size of the rarity dimension, in standard deviations of an embedding per nat."""


def build_base(
    shape: BaseShape, *, vocab_size: int, eos: int, seed: int = 0, surprisal: Tensor | None = None
) -> StableLmForCausalLM:
    """A StableLM of ``shape`` with the circuit in its weights; deterministic in ``seed``.

    ``surprisal`` float [V]: -log of each token's frequency (nats) for the rarity dimension, centred here.
    """
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
                # A little more, so that rounding down gives the number that is meant.
                "partial_rotary_factor": shape.rotary / shape.head_dim + 1e-6,
            },
            use_qkv_bias=True,
            bos_token_id=eos,
            eos_token_id=eos,
            dtype="float32",
            **({CIRCUIT: {"pairs": shape.pairs, "frozen": shape.frozen_circuit}} if shape.induction else {}),
        )
    )
    with torch.no_grad():
        _calm(model, shape)
        if shape.induction:
            _Circuit(model, shape).write(surprisal)
    hold_circuit(model)
    return model


def circuit_pairs(model: PreTrainedModel) -> int | None:
    """p, the pairs that one vector has room for; None where the model was not started with the circuit."""
    found = getattr(model.config, CIRCUIT, None)
    return None if found is None else int(found["pairs"])


def hold_circuit(model: PreTrainedModel) -> Callable[[], None]:
    """Freeze the circuit where the model's configuration says that it has one to be kept; other models are left alone.

    Returns what keeps the embeddings in its dimensions, in place: to be called between steps.
    """
    if not getattr(model.config, CIRCUIT, {}).get("frozen", False):
        return lambda: None
    _freeze(model)
    return CodeSpace(model).settle


def _freeze(model: nn.Module) -> None:
    """What looks back and what matches is not trained any further: layer 0, and queries, keys and values of layer 1."""
    model.get_submodule("model.layers.0").requires_grad_(False)
    for name in ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        model.get_submodule(f"model.layers.1.{name}").requires_grad_(False)
    # With it a head can learn where to rest when nothing matches; else it copies whatever comes nearest.
    model.get_parameter("model.layers.1.self_attn.q_proj.bias").requires_grad_(True)


class CodeSpace:
    """Keeps embeddings where the frozen circuit expects them: learned within the token codes, as they were outside.

    Else they grow into the places that hold earlier tokens, and the circuit, gists included, stops working within
    a hundred steps.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._weight: nn.Parameter = model.get_submodule("model.embed_tokens").weight
        copied = model.get_submodule("model.layers.1.self_attn.v_proj").weight.detach().float()
        _, strength, axes = torch.linalg.svd(copied, full_matrices=False)
        kept = axes[strength > 1e-4 * strength[0]]
        self._projector = kept.T @ kept
        self._outside = self._weight.detach() - self._weight.detach() @ self._projector

    @torch.no_grad()
    def settle(self) -> None:
        """Put the embeddings back, in place."""
        weight, projector = self._weight, self._projector.to(self._weight)
        weight.copy_(weight @ projector + self._outside.to(weight))


def _calm(model: StableLmForCausalLM, shape: BaseShape) -> None:
    """Inputs of each layer at the usual scale, outputs at zero."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            linear.weight.normal_(std=0.5 * shape.width**-0.5)
        attention.o_proj.weight.zero_()
        mlp.down_proj.weight.zero_()


class _Circuit:
    """Where things are in the stream, and the writing of the weights. Rows of all bases are orthonormal."""

    def __init__(self, model: StableLmForCausalLM, shape: BaseShape) -> None:
        self.model, self.shape = model, shape
        width, head, pairs = shape.width, shape.head_dim, shape.pairs
        self.content = head - shape.rotary
        codes = pairs * head
        basis = torch.linalg.qr(torch.randn(width, width)).Q.T
        self.token = basis[:codes]
        edges = [codes + number * self.content for number in range(pairs + 2)]
        self.places = [basis[first : first + self.content] for first in edges[:-1]]
        self.rare = basis[-1]
        turns = (torch.linalg.qr(torch.randn(codes, codes)).Q[: self.content] for _ in range(pairs))
        self.hashes = [turn @ self.token for turn in turns]
        # What layer 0 writes is to be as large as the embedding's part in the same number of dimensions.
        self.write_scale = shape.embedding_std

    def write(self, surprisal: Tensor | None) -> None:
        """All of the circuit."""
        self._embeddings(surprisal)
        for number in range(self.shape.pairs + 1):
            self._look_back(number)
        for number in range(self.shape.width // self.shape.head_dim):
            self._match(number)

    def _embeddings(self, surprisal: Tensor | None) -> None:
        weight = self.model.model.embed_tokens.weight
        spread = math.sqrt(self.shape.width / len(self.token))
        weight.copy_(weight @ self.token.T @ self.token * spread)
        if surprisal is not None:
            rarity = surprisal - (surprisal * torch.exp(-surprisal)).sum() / torch.exp(-surprisal).sum()
            weight.add_(self.shape.embedding_std * RARE_SHARE * rarity[:, None] * self.rare)

    def _look_back(self, number: int) -> None:
        attention, head, rotary = self.model.model.layers[0].self_attn, self.shape.head_dim, self.shape.rotary
        last = number == self.shape.pairs
        distance = 2 if last else 1
        planes = torch.arange(rotary // 2)
        angle = distance * self.shape.rope_theta ** (-2.0 * planes / rotary)
        strength = math.sqrt(LOOK_BACK_SCORE * math.sqrt(head))
        first = number * head
        rows, read = slice(first, first + head), slice(first, first + self.content)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            linear.weight[rows] = 0
        attention.q_proj.bias[first + planes] = strength
        attention.k_proj.bias[first + planes] = strength * torch.cos(angle)
        attention.k_proj.bias[first + rotary // 2 + planes] = strength * torch.sin(angle)
        attention.v_proj.weight[read] = self.hashes[0 if last else number]
        attention.o_proj.weight[:, read] = self.write_scale * self.places[number].T

    def _match(self, number: int) -> None:
        attention, head, pairs = self.model.model.layers[1].self_attn, self.shape.head_dim, self.shape.pairs
        pair = number % pairs
        if number < pairs:
            query, key = self.hashes[pair], self.places[pair]
        else:
            half, rest = self.content // 2, self.content - self.content // 2
            query = torch.cat([self.hashes[pair][:half], self.places[0][:rest]])
            key = torch.cat([self.places[pair][:half], self.places[pairs][:rest]])
        gain = math.sqrt(MATCH_SCORE * math.sqrt(head) / self.content)
        rows = slice(number * head, (number + 1) * head)
        for linear, read in ((attention.q_proj, query), (attention.k_proj, key)):
            linear.weight[rows] = 0
            linear.weight[number * head + self.shape.rotary : (number + 1) * head] = gain * read
        copied = self.token[pair * head : (pair + 1) * head]
        attention.v_proj.weight[rows] = copied
        attention.o_proj.weight[:, rows] = self.write_scale * copied.T
