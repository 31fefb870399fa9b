"""The adapter, for every family: a window of raw tokens is the base itself, gists get gradient, nothing is guessed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megacontext.errors import CorruptCheckpoint, InvalidInput, ModelMismatch, ModelNotFound, UnsupportedModel
from megacontext.models.base_lm import BaseLM, identity_gap
from megacontext.models.gistnet import GistNet, GistNetConfig
from megacontext.testing.tiny_models import CONTEXT, VOCAB, WIDTH, byte_tokenizer, save_tiny, tiny_base, tiny_model

LENGTH = 70  # longer than the sliding windows of the tiny models
TOLERANCE = 2e-5


def tokens(rng: torch.Generator, rows: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(0, 256, (rows, length), generator=rng)


def ranks(ids: Tensor, start: int = 0) -> Tensor:
    return torch.arange(start, start + ids.shape[1]).expand(ids.shape)


def gisted(base: BaseLM, gists: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Three gists of 32 tokens each before raw tokens, at the centres of their spans."""
    positions = torch.cat([torch.tensor([15, 47, 79]), torch.arange(96, 96 + ids.shape[1])])
    return torch.cat([gists, base.embed(ids)], dim=1), positions.expand(len(ids), -1)


def test_a_window_of_raw_tokens_gives_the_base_own_logits(base: BaseLM, rng: torch.Generator) -> None:
    assert identity_gap(base, tokens(rng)) <= TOLERANCE


def test_the_same_with_a_cache_in_pieces(base: BaseLM, rng: torch.Generator) -> None:
    ids = tokens(rng)
    own = base.model(input_ids=ids, use_cache=False).logits
    cache = base.new_cache()
    pieces = [(0, 33), (33, 34), (34, 66), *((i, i + 1) for i in range(66, LENGTH))]
    with torch.no_grad():
        logits = [base(base.embed(ids[:, a:b]), ranks(ids[:, a:b], a), cache=cache).logits for a, b in pieces]
    assert cache.length == LENGTH
    torch.testing.assert_close(torch.cat(logits, dim=1), own, atol=TOLERANCE, rtol=0)


def test_padding_changes_nothing(base: BaseLM, rng: torch.Generator) -> None:
    ids = tokens(rng, rows=1, length=40)
    padded = torch.cat([base.embed(tokens(rng, rows=1, length=5)) * 100, base.embed(ids)], dim=1)
    positions = torch.cat([torch.zeros(1, 5, dtype=torch.long), ranks(ids)], dim=1)
    valid = torch.arange(45)[None] >= 5
    with torch.no_grad():
        plain = base(base.embed(ids), ranks(ids)).logits
        other = base(padded, positions, valid=valid).logits[:, 5:]
        cache = base.new_cache()
        base(padded[:, :20], positions[:, :20], valid=valid[:, :20], cache=cache)
        continued = base(padded[:, 20:], positions[:, 20:], cache=cache).logits
    torch.testing.assert_close(other, plain, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(continued, plain[:, 15:], atol=TOLERANCE, rtol=0)
    assert cache.valid is not None and cache.valid.shape == (1, 45)


def test_logits_from_gives_the_last_slots_only(base: BaseLM, rng: torch.Generator) -> None:
    ids = tokens(rng, length=30)
    with torch.no_grad():
        every = base(base.embed(ids), ranks(ids)).logits
        last = base(base.embed(ids), ranks(ids), logits_from=27).logits
    assert every.shape == (2, 30, base.vocab_size) and every.dtype == torch.float32
    assert last.shape == (2, 3, base.vocab_size)
    torch.testing.assert_close(last, every[:, 27:], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_reaches_every_gist(base: BaseLM, rng: torch.Generator, checkpointing: bool) -> None:
    ids = tokens(rng, length=20)
    gists = torch.randn(2, 3, WIDTH, generator=rng) * base.embedding_rms
    gists.requires_grad_(True)
    embeds, positions = gisted(base, gists, ids)
    with base.gradient_checkpointing() if checkpointing else contextlib.nullcontext():
        logits = base(embeds, positions, logits_from=3).logits
        logits.log_softmax(dim=-1).gather(-1, ids[..., None]).mean().backward()
    assert gists.grad is not None
    assert float(gists.grad.abs().amax(dim=-1).min()) > 1e-6
    assert not any(module.training for module in base.model.modules())
    assert all(p.grad is None for p in base.model.parameters())


def test_checkpointing_gives_the_same_gradient_and_recomputes(llama: BaseLM, rng: torch.Generator) -> None:
    ids = tokens(rng, length=20)
    calls: list[int] = []
    hook = llama.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    for scope in (contextlib.nullcontext(), llama.gradient_checkpointing()):
        gists = torch.full((2, 3, WIDTH), 0.1, requires_grad=True)
        embeds, positions = gisted(llama, gists, ids)
        with scope:
            llama(embeds, positions).logits.square().mean().backward()
        gradients.append(gists.grad)
        assert not llama.embed(ids).requires_grad
    hook.remove()
    assert len(calls) == 1 + 2
    torch.testing.assert_close(gradients[0], gradients[1])


def test_noise_instead_of_gists_changes_the_logits(base: BaseLM, rng: torch.Generator) -> None:
    ids = tokens(rng, length=20)
    outputs = []
    for _ in range(2):
        gists = torch.randn(2, 3, WIDTH, generator=rng) * base.embedding_rms
        embeds, positions = gisted(base, gists, ids)
        with torch.no_grad():
            outputs.append(base(embeds, positions, logits_from=3).logits)
    change = (outputs[0] - outputs[1]).abs().amax(dim=-1)
    assert float(change.min()) > 1e-4  # at every slot behind the gists, also the last


def test_a_gistnet_trains_through_the_frozen_base(llama: BaseLM, rng: torch.Generator) -> None:
    torch.manual_seed(0)
    net = GistNet(GistNetConfig(width=WIDTH, output_rms=llama.embedding_rms))
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    ids = tokens(rng, rows=2, length=96 + 16)
    children, mask = llama.embed(ids[:, :96]).reshape(6, 32, WIDTH), torch.ones(6, 32, dtype=torch.bool)
    losses = []
    for _ in range(15):
        gists = net(children, mask, torch.ones(6, dtype=torch.long)).reshape(2, 3, WIDTH)
        embeds, positions = gisted(llama, gists, ids[:, 96:])
        logits = llama(embeds, positions, logits_from=3).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 97:].flatten())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05, losses


def test_a_mask_narrows_attention_but_never_opens_the_future(llama: BaseLM, rng: torch.Generator) -> None:
    ids = tokens(rng, rows=1, length=12)
    closed = torch.ones(12, 12, dtype=torch.bool)
    closed[6:, :6] = False  # the second half does not see the first
    with torch.no_grad():
        open_logits = llama(llama.embed(ids), ranks(ids), mask=torch.ones(12, 12, dtype=torch.bool)).logits
        plain = llama(llama.embed(ids), ranks(ids)).logits
        masked = llama(llama.embed(ids), ranks(ids), mask=closed[None]).logits
        alone = llama(llama.embed(ids[:, 6:]), ranks(ids[:, 6:], 6)).logits
    torch.testing.assert_close(open_logits, plain)
    torch.testing.assert_close(masked[:, 6:], alone, atol=TOLERANCE, rtol=0)


def test_facts_come_from_the_configuration(base: BaseLM) -> None:
    assert (base.width, base.vocab_size, base.context_length) == (WIDTH, VOCAB, CONTEXT)
    assert base.embedding_rms == pytest.approx(float(base.embed(torch.arange(VOCAB)[None]).square().mean().sqrt()), rel=1e-3)
    assert not any(p.requires_grad for p in base.model.parameters())


def test_a_missing_context_length_is_not_guessed() -> None:
    base = tiny_base("llama")
    base.model.config.max_position_embeddings = 0
    with pytest.raises(UnsupportedModel, match="max_position_embeddings"):
        _ = base.context_length


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeds": torch.zeros(1, 4, WIDTH + 1)}, "embeds must be"),
        ({"positions": torch.zeros(1, 4)}, "positions must be integers"),
        ({"positions": torch.zeros(1, 5, dtype=torch.long)}, "positions must be integers"),
        ({"positions": torch.full((1, 4), CONTEXT)}, "strategy"),
        ({"positions": torch.full((1, 4), -1)}, "positions run from -1"),
        ({"valid": torch.ones(1, 4)}, "valid must be bool"),
        ({"logits_from": 4}, "logits_from"),
    ],
)
def test_impossible_input_is_refused(llama: BaseLM, changes: dict[str, object], message: str) -> None:
    arguments = {"embeds": torch.zeros(1, 4, WIDTH), "positions": torch.arange(4)[None], **changes}
    with pytest.raises(InvalidInput, match=message):
        llama.forward(**arguments)  # type: ignore[arg-type]


def test_a_cache_under_checkpointing_is_refused(llama: BaseLM) -> None:
    with llama.gradient_checkpointing(), pytest.raises(InvalidInput, match="cache"):
        llama(torch.zeros(1, 4, WIDTH), torch.arange(4)[None], cache=llama.new_cache())


def test_a_failed_pass_leaves_the_cache_as_it_was(llama: BaseLM, rng: torch.Generator) -> None:
    ids = tokens(rng, rows=1, length=20)
    cache = llama.new_cache()
    layer = llama.model.model.layers[1]
    with torch.no_grad():
        llama(llama.embed(ids), ranks(ids), cache=cache)

        def fail(*_: object) -> None:
            raise MemoryError("out of memory")

        hook = layer.register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            llama(llama.embed(ids), ranks(ids, 20), cache=cache)
        hook.remove()
        assert [held.get_seq_length() for held in cache.states.layers] == [20, 20]
        again = llama(llama.embed(ids), ranks(ids, 20), cache=cache).logits
        both = torch.cat([ids, ids], dim=1)
        fresh = llama(llama.embed(both), ranks(both), logits_from=20).logits
    torch.testing.assert_close(again, fresh, atol=TOLERANCE, rtol=0)


# Loading


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_from_pretrained_reads_a_folder(tmp_path: Path, family: str, rng: torch.Generator) -> None:
    save_tiny(tmp_path, family)
    loaded, fresh = BaseLM.from_pretrained(tmp_path, device="cpu"), tiny_base(family)
    assert loaded.family == family and loaded.dtype == torch.float32
    assert loaded.fingerprint == fresh.fingerprint
    assert loaded.tokenizer_fingerprint == fresh.tokenizer_fingerprint
    ids = tokens(rng)
    torch.testing.assert_close(
        loaded(loaded.embed(ids), ranks(ids)).logits, fresh(fresh.embed(ids), ranks(ids)).logits, atol=TOLERANCE, rtol=0
    )


def test_fingerprints_tell_weights_configurations_and_tokenizers_apart(tmp_path: Path) -> None:
    names = {
        tiny_base("llama").fingerprint,
        tiny_base("llama", seed=1).fingerprint,
        tiny_base("llama", rms_norm_eps=1e-3).fingerprint,
        tiny_base("mistral").fingerprint,
    }
    assert len(names) == 4
    other = byte_tokenizer()
    other.add_tokens(["def"])
    with_other = BaseLM.wrap(tiny_model("llama"), other)
    assert with_other.tokenizer_fingerprint != tiny_base("llama").tokenizer_fingerprint
    assert with_other.fingerprint == tiny_base("llama").fingerprint


def test_a_lossless_conversion_keeps_the_fingerprint_and_rounding_does_not(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    exact = BaseLM.from_pretrained(tmp_path, device="cpu").fingerprint
    rounded = BaseLM.from_pretrained(tmp_path, dtype=torch.bfloat16, device="cpu")
    assert rounded.fingerprint != exact
    rounded.model.save_pretrained(tmp_path)
    assert BaseLM.from_pretrained(tmp_path, device="cpu").fingerprint == rounded.fingerprint


def test_an_unknown_model_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        BaseLM.from_pretrained(tmp_path)
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        BaseLM.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE"):
        BaseLM.from_pretrained("nobody/no-such-model")


def test_a_model_without_tokenizer_says_so(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelNotFound, match="tokenizer"):
        BaseLM.from_pretrained(tmp_path)
    with pytest.raises(ModelMismatch, match="tokenizer"):
        _ = BaseLM.wrap(tiny_model("llama")).tokenizer


@pytest.mark.parametrize("damage", ["cut", "flipped header", "empty", "gone", "config", "field", "tensor gone", "other shape"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "flipped header":
        weights.write_bytes(b"\xff" + content[1:])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "gone":
        weights.unlink()
    elif damage == "config":
        config.write_text(config.read_text()[:50])
    elif damage == "field":
        config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": "many"}))
    else:
        tensors = load_file(weights)
        name = "model.layers.1.mlp.up_proj.weight"
        whole = tensors.pop(name)
        if damage == "other shape":
            tensors[name] = whole[:-1].clone()
        save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CorruptCheckpoint):
        BaseLM.from_pretrained(tmp_path)


def test_an_unknown_architecture_is_unsupported(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "no-such-architecture"}))
    with pytest.raises(UnsupportedModel, match="does not know the architecture"):
        BaseLM.from_pretrained(tmp_path)
