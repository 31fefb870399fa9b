"""Crop and continue is a fresh prefill, for every family; what cannot be cropped is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionLayer

from megacontext.errors import InvalidInput, UnsupportedModel
from megacontext.models.base_lm import BaseLM
from megacontext.models.cache import KeyValueCache, crop, fork, is_croppable, new_cache, repeat
from megacontext.testing.tiny_models import tiny_model

TOLERANCE = 2e-5


def read(base: BaseLM, ids: torch.Tensor, start: int = 0, cache: KeyValueCache | None = None) -> torch.Tensor:
    positions = torch.arange(start, start + ids.shape[1]).expand(ids.shape)
    with torch.no_grad():
        return base(base.embed(ids), positions, cache=cache).logits


@pytest.mark.parametrize("keep", [0, 1, 10, 60, 80])
def test_crop_and_continue_equals_a_fresh_prefill(base: BaseLM, rng: torch.Generator, keep: int) -> None:
    first, second = (torch.randint(0, 256, (2, 80), generator=rng) for _ in range(2))
    cache = base.new_cache()
    read(base, first, cache=cache)
    assert crop(cache, keep) is cache and cache.length == keep
    continued = read(base, second[:, :30], keep, cache)
    fresh = read(base, torch.cat([first[:, :keep], second[:, :30]], dim=1))[:, keep:]
    torch.testing.assert_close(continued, fresh, atol=TOLERANCE, rtol=0)


def test_crop_after_many_single_steps(base: BaseLM, rng: torch.Generator) -> None:
    ids = torch.randint(0, 256, (1, 60), generator=rng)
    cache = base.new_cache()
    for i in range(60):
        read(base, ids[:, i : i + 1], i, cache)
    crop(cache, 35)
    torch.testing.assert_close(read(base, ids[:, 35:], 35, cache), read(base, ids)[:, 35:], atol=TOLERANCE, rtol=0)


def test_a_fork_is_independent(llama: BaseLM, rng: torch.Generator) -> None:
    ids = torch.randint(0, 256, (1, 40), generator=rng)
    cache = llama.new_cache()
    read(llama, ids, cache=cache)
    branch = fork(cache)
    crop(branch, 10)
    read(llama, ids[:, :7], 10, branch)
    assert (cache.length, branch.length) == (40, 17)
    expected = read(llama, torch.cat([ids, ids], dim=1)[:, :50])[:, 40:]
    torch.testing.assert_close(read(llama, ids[:, :10], 40, cache), expected, atol=TOLERANCE, rtol=0)


def test_repeat_serves_many_continuations_of_one_prefix(llama: BaseLM, rng: torch.Generator) -> None:
    prefix, ends = torch.randint(0, 256, (1, 30), generator=rng), torch.randint(0, 256, (3, 5), generator=rng)
    cache = llama.new_cache()
    valid = torch.arange(30)[None] >= 2
    with torch.no_grad():
        llama(llama.embed(prefix), torch.arange(30)[None], valid=valid, cache=cache)
    together = read(llama, ends, 30, repeat(cache, 3))
    for row in range(3):
        torch.testing.assert_close(together[row], read(llama, ends[row : row + 1], 30, fork(cache))[0], atol=TOLERANCE, rtol=0)


def test_caches_that_forget_are_refused(rng: torch.Generator) -> None:
    model = tiny_model("mistral")
    states = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.randint(0, 256, (1, 40), generator=rng), past_key_values=states)
    cache = KeyValueCache(states=states)
    assert not is_croppable(cache)
    with pytest.raises(UnsupportedModel, match="prefill"):
        crop(cache, 10)
    linear = new_cache()
    linear.states.layers.append(LinearAttentionLayer())
    assert not is_croppable(linear)
    with pytest.raises(UnsupportedModel, match="LinearAttentionLayer"):
        crop(linear, 0)


def test_more_than_is_held_cannot_be_kept(llama: BaseLM, rng: torch.Generator) -> None:
    cache = llama.new_cache()
    assert is_croppable(cache) and crop(cache, 0).length == 0
    read(llama, torch.randint(0, 256, (1, 8), generator=rng), cache=cache)
    for keep in (-1, 9):
        with pytest.raises(InvalidInput, match="8"):
            crop(cache, keep)
