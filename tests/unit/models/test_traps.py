"""What transformers 5 does when something is left to it, and that the adapter leaves nothing to it.

Each test shows the trap first, where it can be shown, so that a release that mends it is noticed.
"""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from transformers import DynamicCache

from megacontext.errors import InvalidInput, UnsupportedModel
from megacontext.models.base_lm import BaseLM
from megacontext.models.masks import FULL, SLIDING, additive, allowed, plan_for
from megacontext.testing.tiny_models import SLIDING_WINDOW, WIDTH, save_tiny, tiny_base, tiny_model

GAPS = torch.tensor([[0, 32, 64, 96, *range(128, 140)]])


def gisted(base: BaseLM, rng: torch.Generator) -> torch.Tensor:
    return torch.randn(1, GAPS.shape[1], base.width, generator=rng) * base.embedding_rms


# 1. Gaps in the positions are read as packed sequences.


def test_without_a_mask_gaps_cut_the_gists_off(llama: BaseLM, rng: torch.Generator) -> None:
    embeds = gisted(llama, rng).requires_grad_(True)
    loss = llama.model(inputs_embeds=embeds, position_ids=GAPS, use_cache=False).logits[:, 4:].square().mean()
    (gradient,) = torch.autograd.grad(loss, embeds)
    assert float(gradient[:, :4].abs().max()) == 0.0, "transformers no longer packs: tell ECOSYSTEM"


def test_with_the_adapter_gaps_cut_nothing_off(base: BaseLM, rng: torch.Generator) -> None:
    embeds = gisted(base, rng).requires_grad_(True)
    loss = base(embeds, GAPS, logits_from=4).logits.square().mean()
    (gradient,) = torch.autograd.grad(loss, embeds)
    assert float(gradient[:, :4].abs().amax(dim=-1).min()) > 1e-8


def test_attention_is_sdpa_whatever_was_asked_for() -> None:
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    assert BaseLM.wrap(model).model.config._attn_implementation == "sdpa"


# 2. Cropping caches (more in test_cache).


def test_crop_takes_slots_to_remove_and_sliding_layers_forget(rng: torch.Generator) -> None:
    model = tiny_model("mistral")
    states = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.randint(0, 256, (1, 40), generator=rng), past_key_values=states)
    with pytest.raises((RuntimeError, ValueError)):
        states.crop(10)
    assert states.layers[0].keys.shape[2] < SLIDING_WINDOW
    base = tiny_base("mistral")
    cache = base.new_cache()
    with torch.no_grad():
        base(torch.zeros(1, 40, WIDTH), torch.arange(40)[None], cache=cache)
    assert cache.states.layers[0].keys.shape[2] == 40


# 3. Masks: floats, one per layer type, windows counted in slots.


def test_boolean_masks_are_wrong_in_eager_attention_and_ours_are_floats(rng: torch.Generator) -> None:
    model = tiny_model("llama")
    ids = torch.randint(0, 256, (1, 20), generator=rng)
    causal = torch.ones(20, 20, dtype=torch.bool).tril()[None]
    expected = model(input_ids=ids, use_cache=False).logits
    model.set_attn_implementation("eager")
    wrong = model(input_ids=ids, attention_mask=causal[:, None], use_cache=False).logits
    right = model(input_ids=ids, attention_mask=additive(causal, torch.float32), use_cache=False).logits
    assert float((wrong - expected).detach().abs().max()) > 1e-2
    torch.testing.assert_close(right, expected, atol=2e-5, rtol=0)


def test_families_that_take_a_mask_per_layer_type_get_one() -> None:
    plans = {
        family: plan_for(tiny_model(family)) for family in ("gemma3", "gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3")
    }
    assert {family for family, plan in plans.items() if plan.as_dict} == {"gemma3", "qwen2", "qwen3", "smollm3"}
    assert plans["gemma3"].kinds == plans["qwen2"].kinds == (FULL, SLIDING)
    assert plans["mistral"].kinds == (SLIDING,)
    assert plans["llama"].kinds == plans["gpt2"].kinds == plans["qwen3"].kinds == (FULL,)


def test_sliding_windows_count_slots_and_stay_in_force_with_gaps(rng: torch.Generator) -> None:
    base = tiny_base("mistral", num_hidden_layers=1)
    slots = SLIDING_WINDOW + 6
    embeds = torch.randn(1, slots, WIDTH, generator=rng).requires_grad_(True)
    positions = (torch.arange(slots) * 3)[None]
    (gradient,) = torch.autograd.grad(base(embeds, positions, logits_from=slots - 1).logits.square().mean(), embeds)
    seen = gradient[0].abs().amax(dim=-1) > 0
    assert seen.tolist() == [False] * 6 + [True] * SLIDING_WINDOW


def test_layers_that_the_masks_cannot_drive_are_refused() -> None:
    model = tiny_model("qwen3")
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UnsupportedModel, match="linear_attention"):
        BaseLM.wrap(model)


def test_no_row_of_a_mask_is_empty() -> None:
    valid = torch.zeros(1, 5, dtype=torch.bool)
    mask = additive(allowed(1, 2, 3, valid=valid, custom=None, device=torch.device("cpu")), torch.float16)
    assert mask.shape == (1, 1, 3, 5) and mask.dtype == torch.float16
    assert mask.softmax(dim=-1).isfinite().all()
    assert (mask == 0).sum(dim=-1).tolist() == [[[1, 1, 1]]]


# 4. Embeddings are the module's output.


def test_embeddings_are_scaled_where_the_family_scales_them() -> None:
    base, ids = tiny_base("gemma3"), torch.arange(10)[None]
    rows = base.model.get_input_embeddings().weight[ids]
    torch.testing.assert_close(base.embed(ids), rows * WIDTH**0.5)
    assert base.embedding_rms == pytest.approx(float(rows.square().mean().sqrt()) * WIDTH**0.5, rel=0.1)


# 5. Positions go through float32.


def test_positions_from_2_to_the_24_on_collide_in_float32() -> None:
    edge = torch.tensor([2**24, 2**24 + 1])
    assert edge.float()[0] == edge.float()[1]
    base = tiny_base("llama", max_position_embeddings=2**25)
    embeds = torch.randn(1, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        far = base(embeds, edge[None]).logits  # the adapter passes on what the base claims to know
        same = base(embeds, torch.full((1, 2), 2**24)).logits
    assert torch.equal(far, same), "positions are exact now: the strategies' limit of 2^24 can go"


def test_float_positions_are_refused(llama: BaseLM) -> None:
    with pytest.raises(InvalidInput, match="integers"):
        llama(torch.zeros(1, 2, WIDTH), torch.tensor([[0.0, 15.5]]))


def test_learned_positions_follow_explicit_ones(rng: torch.Generator) -> None:
    base = tiny_base("gpt2")
    embeds = torch.randn(1, 3, WIDTH, generator=rng)
    with torch.no_grad():
        near, far = (base(embeds, torch.tensor([[0, 1, last]])).logits for last in (2, 300))
    assert torch.equal(near[:, :2], far[:, :2])
    assert float((near[:, 2] - far[:, 2]).abs().max()) > 1e-3


def test_smollm3_has_layers_without_positions() -> None:
    assert 0 in tiny_model("smollm3").config.no_rope_layers


# 6. Unknown keyword arguments vanish.


def test_misspelt_arguments_are_swallowed_so_ours_are_checked(llama: BaseLM, rng: torch.Generator) -> None:
    ids = torch.randint(0, 256, (1, 5), generator=rng)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swallowed = llama.model(input_ids=ids, position_idz=torch.zeros(1, 5)).logits
    torch.testing.assert_close(swallowed, llama.model(input_ids=ids).logits)

    class Deaf(type(llama.model)):  # type: ignore[misc]
        def forward(self, input_ids=None, attention_mask=None, **kwargs):  # type: ignore[no-untyped-def]
            return super().forward(input_ids, attention_mask, **kwargs)

    with pytest.raises(UnsupportedModel, match="inputs_embeds, position_ids"):
        BaseLM.wrap(Deaf(llama.model.config))


def test_every_argument_that_is_passed_is_in_the_signature(base: BaseLM) -> None:
    passed: dict[str, object] = {}
    hook = base.model.register_forward_pre_hook(lambda _, __, kwargs: passed.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        base(torch.zeros(1, 2, WIDTH), torch.arange(2)[None])
    hook.remove()
    known = inspect.signature(inspect.unwrap(type(base.model).forward)).parameters
    assert set(passed) <= set(known)
    assert {"inputs_embeds", "position_ids", "attention_mask"} <= set(passed)


# 7. Models load in the checkpoint's dtype.


def test_the_dtype_is_ours_not_the_checkpoints(tmp_path: object) -> None:
    folder = save_tiny(str(tmp_path))
    tiny_model("llama").to(torch.bfloat16).save_pretrained(folder)
    assert BaseLM.from_pretrained(folder, device="cpu").dtype == torch.float32
    asked = BaseLM.from_pretrained(folder, dtype=torch.bfloat16, device="cpu")
    assert asked.dtype == torch.bfloat16
    with torch.no_grad():
        out = asked(asked.embed(torch.arange(6)[None]), torch.arange(6)[None])
    assert out.logits.dtype == torch.float32 and out.logits.isfinite().all()
