from __future__ import annotations

import numpy as np
import pytest
import torch

from megacontext.core import Expand, Timeline, WorkingContext, apply, legal_edits
from megacontext.engine.assemble import embed_slots, positions_of, slots_after, slots_of
from megacontext.engine.memory import Memory
from megacontext.errors import BudgetError
from megacontext.evaluation.arms import make_reader
from megacontext.models.positions import WindowRanks
from megacontext.testing.tiny_models import tiny_base

NOTHING = np.zeros(0, dtype=np.int64)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_a_window_of_raw_tokens_gives_the_bases_own_logits(family: str) -> None:
    base = tiny_base(family)
    ids = np.random.default_rng(0).integers(0, 256, 5 * 32 + 7)
    reader = make_reader(ids, None, base)
    window = WorkingContext(Timeline(5, 7), np.zeros(5, np.int8), np.arange(5), budget=512, recent=32)
    slots = slots_of(window, reader, ids[160:], gists=False)
    positions = positions_of(slots, WindowRanks(), base.context_length)
    with torch.no_grad():
        ours = base.forward(embed_slots(slots, base), torch.from_numpy(positions)[None]).logits
        own = base.model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits.float()
    torch.testing.assert_close(ours, own, atol=2e-5, rtol=1e-4)


def test_filling_is_never_a_slot_and_gists_take_one(memory: Memory) -> None:
    snapshot = memory.snapshot()
    timeline = snapshot.timeline()
    window = WorkingContext.coarsest(timeline, 512, 64)
    slots = slots_of(window, snapshot, NOTHING, gists=True)
    real = int(snapshot.fill_at(window.index[window.lod == 0]).sum())
    assert len(slots) == real + int((window.lod > 0).sum())
    assert (np.diff(slots.start) > 0).all()
    assert len(slots.vectors) == int((slots.token < 0).sum())
    opened = apply(Expand(int(window.lod[0]), int(window.index[0])), window)
    more = slots_of(opened, snapshot, NOTHING, gists=True)
    assert len(more) == len(slots) + opened.cost - window.cost


def test_each_gist_slot_holds_its_own_nodes_vector(memory: Memory) -> None:
    snapshot = memory.snapshot()
    window = WorkingContext.coarsest(snapshot.timeline(), 512, 64)
    slots = slots_of(window, snapshot, NOTHING, gists=True)
    embeds = embed_slots(slots, memory.bundle.base)[0]
    for at in np.flatnonzero(slots.token < 0).tolist():
        entry = int(slots.entry[at])
        true = snapshot.gists_at(int(window.lod[entry]), window.index[entry : entry + 1])[0, 0]
        np.testing.assert_array_equal(embeds[at].numpy(), true.astype(np.float32))
    late = embed_slots(slots, memory.bundle.base, np.arange(3, len(slots)))[0]
    torch.testing.assert_close(late, embeds[3:], atol=0, rtol=0)


def test_without_a_gist_layer_gists_have_no_slots(memory: Memory) -> None:
    snapshot = memory.snapshot()
    window = WorkingContext.coarsest(snapshot.timeline(), 512, 64)
    slots = slots_of(window, snapshot, NOTHING, gists=False)
    assert (slots.token >= 0).all()


def test_more_slots_than_positions_is_a_clear_error(memory: Memory) -> None:
    snapshot = memory.snapshot()
    window = WorkingContext.coarsest(snapshot.timeline(), 512, 64)
    slots = slots_of(window, snapshot, NOTHING, gists=True)
    with pytest.raises(BudgetError, match="lower the budget"):
        positions_of(slots, WindowRanks(), len(slots) - 1)


def test_take_keeps_vectors_with_their_slots(memory: Memory) -> None:
    snapshot = memory.snapshot()
    window = WorkingContext.coarsest(snapshot.timeline(), 512, 64)
    slots = slots_of(window, snapshot, NOTHING, gists=True)
    some = slots.take(np.arange(1, len(slots), 2))
    embeds = embed_slots(slots, memory.bundle.base)[0]
    torch.testing.assert_close(embed_slots(some, memory.bundle.base)[0], embeds[1::2], atol=0, rtol=0)
    assert slots.common_prefix(slots) == len(slots)
    assert slots.common_prefix(some) == 0


def test_assembly_after_edits_is_assembly_from_nothing(memory: Memory) -> None:
    """Only what is new is gathered, and what comes out is the same to the last column."""
    snapshot, rng = memory.snapshot(), np.random.default_rng(5)
    window = WorkingContext.coarsest(snapshot.timeline(), 400, 32)
    held = slots_of(window, snapshot, NOTHING, gists=True)
    for _ in range(12):
        edits = legal_edits(window)
        after = apply(edits[int(rng.integers(len(edits)))], window)
        open_ids = rng.integers(0, 200, int(rng.integers(0, 9)))
        mine = slots_after(window, held, after, snapshot, open_ids, gists=True)
        whole = slots_of(after, snapshot, open_ids, gists=True)
        for column in ("token", "start", "stop", "entry", "vectors"):
            np.testing.assert_array_equal(getattr(mine, column), getattr(whole, column), err_msg=column)
        window, held = after, mine
