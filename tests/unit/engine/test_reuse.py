"""Reuse across edits: exact where it says so, close and cheap where it says that."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.core import BLOCK, Timeline, WorkingContext, apply, legal_edits
from megacontext.engine.assemble import Slots, slots_of
from megacontext.engine.kv_cache import WindowCache
from megacontext.engine.reader import ArrayReader
from megacontext.engine.reuse import EXACT, Alone, Patched, Reuse
from megacontext.errors import ConfigError
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.cache import move
from megacontext.models.positions import WindowRanks
from megacontext.testing.tiny_bundle import tiny_gistnet, tiny_kv_gistnet
from megacontext.testing.tiny_models import FAMILIES, tiny_base

BLOCKS = 12
TOLERANCE = 2e-4


@functools.cache
def parts(family: str, key_value: bool) -> tuple[BaseLM, GistEncoder, ArrayReader]:
    """A tiny base, its gists, and a history of random blocks."""
    base = tiny_base(family)
    encoder: GistEncoder = tiny_kv_gistnet(base) if key_value else tiny_gistnet(base)
    ids = np.random.default_rng(3).integers(0, 250, (BLOCKS + 4, BLOCK))
    gists = encoder.encode_blocks(base, torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.bool)).numpy()
    nothing = np.zeros(len(ids), dtype=np.uint32)
    reader = ArrayReader(
        ids=ids.astype(np.uint32), fill=np.full(len(ids), BLOCK, np.uint8), documents=nothing, gists={1: gists}
    )
    return base, encoder, reader


def start() -> WorkingContext:
    return WorkingContext(
        timeline=Timeline(blocks=BLOCKS),
        lod=np.array([1] * (BLOCKS - 2) + [0, 0], dtype=np.int8),
        index=np.arange(BLOCKS),
        budget=256,
        recent=2 * BLOCK,
    )


def windows(moves: list[int], reader: ArrayReader) -> list[Slots]:
    """A window edited and continued at random: each number is a legal edit, or three more tokens."""
    window, open_ids, seen = start(), np.zeros(0, dtype=np.int64), []
    for number in moves:
        edits = legal_edits(window)
        if number % 3 and edits:
            window = apply(edits[number % len(edits)], window)
        elif len(open_ids) + 3 < BLOCK and window.free > 3:
            open_ids = np.concatenate([open_ids, (np.arange(3) + number) % 250])
            window = window.advance(window.timeline.extend(BLOCKS, len(open_ids)))
        seen.append(slots_of(window, reader, open_ids, gists=True))
    return seen


def fresh(base: BaseLM, encoder: GistEncoder, slots: Slots) -> torch.Tensor:
    return WindowCache(base, encoder, WindowRanks()).read(slots)


@pytest.mark.parametrize(
    ("family", "key_value"), [*((family, False) for family in sorted(FAMILIES)), ("llama", True), ("qwen3", True)]
)
@settings(max_examples=4, deadline=None)
@given(moves=st.lists(st.integers(0, 10_000), min_size=3, max_size=8))
def test_exact_reuse_gives_the_logits_of_a_fresh_cache(family: str, key_value: bool, moves: list[int]) -> None:
    base, encoder, reader = parts(family, key_value)
    cache, before = WindowCache(base, encoder, WindowRanks()), None
    for slots in windows(moves, reader):
        step = cache.plan(slots)
        changed = min(before.common_prefix(slots) if before is not None else 0, len(slots) - 1)
        assert changed <= step.first <= len(slots) - 1 and bool((slots.token[changed : step.first] < 0).all())
        torch.testing.assert_close(cache.run(step), fresh(base, encoder, slots), atol=TOLERANCE, rtol=1e-3)
        before = slots


@pytest.mark.parametrize("reuse", [Patched(), Patched(again=5)])
@settings(max_examples=4, deadline=None)
@given(moves=st.lists(st.integers(0, 10_000), min_size=3, max_size=8))
def test_patches_are_exact_until_the_first_edit_and_after_an_exact_pass(reuse: Reuse, moves: list[int]) -> None:
    base, encoder, reader = parts("llama", True)
    cache = WindowCache(base, encoder, WindowRanks(), reuse=reuse)
    seen = windows(moves, reader)
    for slots in seen:
        step = cache.plan(slots)
        # Every slot that passes is either held or computed, once.
        both = np.sort(np.concatenate([step.held, step.at]))
        np.testing.assert_array_equal(both, np.flatnonzero(slots.token >= 0))
        np.testing.assert_array_equal(step.places, step.positions[step.held])
        logits = cache.run(step)
        assert torch.isfinite(logits).all()
        if step.exact == len(slots):
            torch.testing.assert_close(logits, fresh(base, encoder, slots), atol=TOLERANCE, rtol=1e-3)
    torch.testing.assert_close(cache.read(seen[-1], exact=True), fresh(base, encoder, seen[-1]), atol=TOLERANCE, rtol=1e-3)


@pytest.mark.parametrize(("family", "key_value"), [("llama", True), ("llama", False), ("smollm3", False)])
@settings(max_examples=4, deadline=None)
@given(moves=st.lists(st.integers(0, 10_000), min_size=3, max_size=8))
def test_far_blocks_read_alone_are_kept_exactly(family: str, key_value: bool, moves: list[int]) -> None:
    base, encoder, reader = parts(family, key_value)
    cache, seen = WindowCache(base, encoder, WindowRanks(), reuse=Alone()), windows(moves, reader)
    for slots in seen:
        new = WindowCache(base, encoder, WindowRanks(), reuse=Alone()).read(slots)
        step = cache.plan(slots)
        torch.testing.assert_close(cache.run(step), new, atol=TOLERANCE, rtol=1e-3)
        # A block that comes in, and at most the tail: two blocks and an open one.
        assert slots is seen[0] or len(step) <= 4 * BLOCK


@pytest.mark.parametrize("family", ["llama", "smollm3"])
def test_keys_that_only_move_are_those_of_a_fresh_cache(family: str) -> None:
    """The oldest slots leave, nothing saw them: what stays, at other positions, is exactly what it was."""
    base, _, reader = parts(family, False)
    raw = slots_of(start(), reader, np.zeros(0, dtype=np.int64), gists=False)
    ids = torch.from_numpy(raw.token)[None]
    held, again = base.new_cache(), base.new_cache()
    with torch.no_grad():
        base(base.embed(ids), torch.arange(40, 40 + ids.shape[1])[None], cache=held)
        base(base.embed(ids), torch.arange(ids.shape[1])[None], cache=again)
    move(held, torch.full((held.length,), -40), base.rotary, base.turned_layers)
    for mine, theirs in zip(held.states.layers, again.states.layers, strict=True):
        torch.testing.assert_close(mine.keys, theirs.keys, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(mine.values, theirs.values, atol=1e-4, rtol=1e-3)


def test_an_expansion_costs_its_block_and_what_is_computed_again() -> None:
    base, encoder, reader = parts("llama", True)
    window = start()
    for again in (0, 20):
        cache = WindowCache(base, encoder, WindowRanks(), reuse=Patched(again=again))
        cache.read(slots_of(window, reader, np.zeros(0, dtype=np.int64), gists=True))
        opened = apply(next(edit for edit in legal_edits(window) if edit.index == 4), window)
        step = cache.plan(slots_of(opened, reader, np.zeros(0, dtype=np.int64), gists=True))
        assert len(step) == BLOCK + max(again, 1)
        assert step.mask is not None and step.mask.shape == (len(step), step.kept + len(step))
        # The block sees itself and nothing newer, the newest slot everything.
        assert not step.mask[0, : step.kept].any() and step.mask[-1].all()


@pytest.mark.parametrize("family", ["mistral", "gpt2", "gemma3"])
def test_where_keys_cannot_move_reuse_is_exact_and_says_why(family: str) -> None:
    base, encoder, _ = parts(family, False)
    cache = WindowCache(base, encoder, WindowRanks(), reuse=Patched())
    assert cache.reuse is EXACT and base.family.split("_")[0] in (cache.unsupported or "")
    with pytest.raises(ConfigError, match="again"):
        Patched(again=-1)


@pytest.mark.parametrize("reuse", [EXACT, Patched(again=3)])
def test_a_pass_that_fails_leaves_what_is_true(reuse: Reuse, monkeypatch: pytest.MonkeyPatch) -> None:
    base, encoder, reader = parts("llama", True)
    seen = windows([1, 0, 4, 0, 7, 5], reader)
    cache = WindowCache(base, encoder, WindowRanks(), reuse=reuse)
    layers = base.model.model.layers
    for number, slots in enumerate(seen):
        broken = layers[number % len(layers)]
        with monkeypatch.context() as patch:
            patch.setattr(broken, "forward", _out_of_memory)
            with pytest.raises(torch.OutOfMemoryError):
                cache.read(slots)
        if reuse is EXACT:
            torch.testing.assert_close(cache.read(slots), fresh(base, encoder, slots), atol=TOLERANCE, rtol=1e-3)
        else:
            assert torch.isfinite(cache.read(slots)).all()
    torch.testing.assert_close(cache.read(seen[-1], exact=True), fresh(base, encoder, seen[-1]), atol=TOLERANCE, rtol=1e-3)


def _out_of_memory(*args: object, **kwargs: object) -> None:
    raise torch.OutOfMemoryError("no room")
