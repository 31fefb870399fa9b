"""What a base of any family has to do under a window of raw tokens and gists.

What the adapter guarantees for every family besides (masks, checkpointing, signatures) is in tests/unit/models,
over the same tiny models.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import megacontext
from megacontext.engine.session import SessionConfig
from megacontext.models import cache as kv
from megacontext.models.base_lm import BaseLM, identity_gap
from megacontext.models.positions import STRATEGIES
from megacontext.testing.tiny_bundle import save_tiny_bundle
from megacontext.testing.tiny_models import SLIDING_WINDOW, save_tiny, tiny_model

LENGTH = 3 * SLIDING_WINDOW
TOLERANCE = 2e-5
NEVER_ENDS = 10**6


def draw(rng: torch.Generator, rows: int = 1, length: int = LENGTH) -> Tensor:
    return torch.randint(0, 256, (rows, length), generator=rng)


def places(count: int, first: int = 0) -> Tensor:
    return torch.arange(first, first + count)[None]


def read(base: BaseLM, ids: Tensor, **options: object) -> Tensor:
    with torch.no_grad():
        logits: Tensor = base(base.embed(ids), places(ids.shape[1]).expand(ids.shape), **options).logits
    return logits


# -- a window of raw tokens is the base itself ------------------------------------------------------


def test_raw_tokens_give_the_bases_own_logits(base: BaseLM, rng: torch.Generator) -> None:
    assert identity_gap(base, draw(rng, rows=2)) <= TOLERANCE


def test_in_bfloat16_too(family: str, rng: torch.Generator) -> None:
    base = BaseLM.wrap(tiny_model(family).to(torch.bfloat16))
    ids = draw(rng)
    spread = float(base.model(input_ids=ids, use_cache=False).logits.float().std())
    assert base.dtype == torch.bfloat16
    assert identity_gap(base, ids) <= 0.05 * spread


def test_with_tied_and_with_untied_heads(family: str, rng: torch.Generator) -> None:
    for tied in (False, True):
        base = BaseLM.wrap(tiny_model(family, tie_word_embeddings=tied))
        same = base.model.get_input_embeddings().weight is base.model.get_output_embeddings().weight
        assert same == tied
        assert identity_gap(base, draw(rng)) <= TOLERANCE


def test_eager_attention_agrees_with_sdpa(family: str, rng: torch.Generator) -> None:
    base, ids = BaseLM.wrap(tiny_model(family)), draw(rng)
    fast = read(base, ids)
    base.model.set_attn_implementation("eager")
    torch.testing.assert_close(read(base, ids), fast, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(base: BaseLM, rng: torch.Generator, side: str) -> None:
    ids, junk = draw(rng, length=40), draw(rng, length=7)
    parts = [junk, ids] if side == "left" else [ids, junk]
    real = slice(7, 47) if side == "left" else slice(0, 40)
    positions = torch.zeros(1, 47, dtype=torch.long)
    positions[:, real] = places(40)
    valid = torch.zeros(1, 47, dtype=torch.bool)
    valid[:, real] = True
    with torch.no_grad():
        padded = base(base.embed(torch.cat(parts, dim=1)), positions, valid=valid).logits
    torch.testing.assert_close(padded[:, real], read(base, ids), atol=TOLERANCE, rtol=0)


def test_a_folder_gives_the_same_model(family: str, tmp_path: Path, rng: torch.Generator) -> None:
    loaded = BaseLM.from_pretrained(save_tiny(tmp_path, family), device="cpu")
    wrapped, ids = BaseLM.wrap(tiny_model(family)), draw(rng)
    assert loaded.fingerprint == wrapped.fingerprint
    torch.testing.assert_close(read(loaded, ids), read(wrapped, ids), atol=0, rtol=0)


# -- gists ------------------------------------------------------------------------------------------


def test_each_gist_is_seen_and_gets_a_gradient(base: BaseLM, rng: torch.Generator) -> None:
    ids = draw(rng, length=12)
    gists = torch.randn(1, 3, base.width, generator=rng) * base.embedding_rms
    positions = torch.cat([torch.tensor([[15, 47, 79]]), places(12, 96)], dim=1)
    embeds = torch.cat([gists, base.embed(ids)], dim=1).detach().requires_grad_(True)
    loss = base(embeds, positions, logits_from=14).logits.square().mean()
    (gradient,) = torch.autograd.grad(loss, embeds)
    assert float(gradient[0, :3].abs().amax(dim=-1).min()) > 1e-9


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_position_strategy_stays_in_range_and_order(base: BaseLM, name: str) -> None:
    start = np.array([0, 32, 64, 96, *range(128, 168)])
    stop = np.array([32, 64, 96, 128, *range(129, 169)])
    positions = STRATEGIES[name]()(start, stop, base.context_length)
    assert (np.diff(positions) > 0).all() and positions[0] >= 0 and positions[-1] < base.context_length
    with torch.no_grad():
        out = base(torch.zeros(1, len(start), base.width), torch.from_numpy(positions)[None], logits_from=len(start) - 1)
    assert out.logits.isfinite().all()


# -- caches and generation ----------------------------------------------------------------------------


def test_cropping_and_reading_again_equals_reading_afresh(base: BaseLM, rng: torch.Generator) -> None:
    ids, other = draw(rng), draw(rng)
    cache = base.new_cache()
    with torch.no_grad():
        base(base.embed(ids), places(LENGTH), cache=cache)
        assert kv.is_croppable(cache)
        kept = kv.crop(cache, 30)
        again = base(base.embed(other[:, 30:]), places(LENGTH - 30, 30), cache=kept).logits
    afresh = read(base, torch.cat([ids[:, :30], other[:, 30:]], dim=1))
    torch.testing.assert_close(again, afresh[:, 30:], atol=TOLERANCE, rtol=0)


def test_generate_of_transformers_equals_our_loop(base: BaseLM, rng: torch.Generator) -> None:
    ids, new = draw(rng, length=30), 12
    theirs = base.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, eos_token_id=NEVER_ENDS
    )
    cache, fed, ours = base.new_cache(), ids, []
    with torch.no_grad():
        for _ in range(new):
            out = base(base.embed(fed), places(fed.shape[1], cache.length), cache=cache, logits_from=fed.shape[1] - 1)
            fed = out.logits[:, -1].argmax(dim=-1, keepdim=True)
            ours.append(int(fed))
    assert theirs[0, 30:].tolist() == ours


@pytest.mark.parametrize("gists", [True, False], ids=["gists", "no_gists"])
def test_a_memory_is_read_and_continued(family: str, tmp_path: Path, gists: bool) -> None:
    model = save_tiny_bundle(tmp_path / "model", family, gistnet=gists, lensnet=gists)
    memory = megacontext.init(tmp_path / "memory.mc", model=model if gists else model / "base")
    text = tmp_path / "text.py"
    text.write_text("".join(f"value_{i} = {i * i}\n" for i in range(60)))
    memory.add(text)
    with memory.session(config=SessionConfig(budget=192, recent=64, refocus_every=4)) as session:
        pieces = list(session.generate("value_7 = ", max_new_tokens=9, stop_at_eos=False))
        assert session.window.cost <= 192
        assert session.window.timeline.tokens > 512
        assert pieces or session.snapshot.blocks
        assert session.logits().isfinite().all()
    assert memory.fsck().clean
