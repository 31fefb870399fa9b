from __future__ import annotations

import numpy as np
import pytest
import torch

from megacontext.engine.assemble import Slots
from megacontext.engine.slot_reader import SlotReader
from megacontext.errors import BudgetError, ConfigError, UnsupportedModel
from megacontext.models.base_lm import BaseLM
from megacontext.models.kv_memory import KeyValueLayout, StoredMemory, capturing
from megacontext.models.rotary import Rotary
from megacontext.testing.slots import slots_with_gist
from megacontext.testing.tiny_bundle import tiny_kv_gistnet
from megacontext.testing.tiny_models import tiny_base

# Sliding windows off: a kept key is seen from any distance, which is what it is for.
FAMILIES = ("llama", "llama3", "mixtral", "olmo2", "phi3", "gpt_neox", "qwen3", "qwen3_moe", "smollm3", "gpt2")
BLOCK = 32


def everything(base: BaseLM, **changes: object) -> dict[str, object]:
    """A layout in which each token of a block is a vector of its own, in all heads of all layers."""
    shape = base.model.config
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    every = tuple((layer, head) for layer in range(shape.num_hidden_layers) for head in range(heads))
    return {"heads": every, "entries": 1, "vectors": BLOCK, "layers": 0, **changes}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gist_that_keeps_everything_reads_like_its_tokens(family: str) -> None:
    base = tiny_base(family)
    ids = torch.randint(0, 250, (1, 80), generator=torch.Generator().manual_seed(1))
    net = tiny_kv_gistnet(base, **everything(base))
    net.gains.data.fill_(1.0)
    gists = net.encode_blocks(base, ids[:, :BLOCK], torch.ones(1, BLOCK, dtype=torch.bool))[0]
    slots = slots_with_gist(gists, ids[0, BLOCK:].numpy())
    with torch.no_grad():
        ours = SlotReader(base, net)([slots], np.arange(80)[None], last=48)
        raw = base.forward(base.embed(ids), torch.arange(80)[None], logits_from=BLOCK).logits
    # Stored in half precision.
    torch.testing.assert_close(ours, raw, atol=3e-2, rtol=1e-2)
    assert float((ours - raw.roll(1, 1)).abs().max()) > 0.5


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt2"])
def test_positions_taken_off_and_put_on_elsewhere_are_those_of_the_base(family: str) -> None:
    base = tiny_base(family)
    base.enable_lookup()
    ids = torch.randint(0, 250, (2, 12), generator=torch.Generator().manual_seed(2))
    found = []
    for first in (0, 40):
        positions = torch.arange(first, first + 12).expand(2, -1)
        with torch.no_grad(), capturing([0]) as captured:
            base.forward(base.embed(ids), positions)
        found.append(captured.found[0][1])
    rotary = Rotary(base.model)
    moved = rotary.put_on(rotary.take_off(found[0], torch.arange(12)[None]), torch.arange(40, 52)[None])
    torch.testing.assert_close(moved, found[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_a_family_with_its_positions_in_its_embeddings_has_nothing_to_turn() -> None:
    keys = torch.randn(1, 2, 3, 8)
    assert Rotary(tiny_base("gpt2").model).put_on(keys, torch.arange(3)[None]) is keys


def test_a_family_with_other_angles_in_each_kind_of_layer_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="same angles in every layer"):
        Rotary(tiny_base("gemma3").model)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_gists_nothing_changes(family: str) -> None:
    plain, ours = tiny_base(family), tiny_base(family)
    ids = torch.arange(40)[None]
    before = ours.fingerprint
    ours.enable_lookup()
    with torch.no_grad():
        for base in (plain, ours):
            base.last = base.forward(base.embed(ids), torch.arange(40)[None]).logits  # type: ignore[attr-defined]
    torch.testing.assert_close(plain.last, ours.last, atol=0, rtol=0)  # type: ignore[attr-defined]
    assert before == BaseLM.wrap(ours.model).fingerprint


def test_only_slots_behind_a_gist_see_it() -> None:
    base = tiny_base("llama")
    net = tiny_kv_gistnet(base)
    ids = torch.arange(96)
    mask = torch.ones(1, BLOCK, dtype=torch.bool)
    reader, read = SlotReader(base, net), []
    for block in (ids[32:64], ids[32:64].flip(0)):
        gist = net.encode_blocks(base, block[None], mask)[0].numpy()
        nothing = np.zeros((0, net.width), dtype=np.float16)
        empty = np.zeros(0, dtype=np.int64)
        slots = Slots(token=empty, start=empty, stop=empty, entry=empty, vectors=nothing).then(ids[:32].numpy(), 0, 0)
        one = np.array([1])
        columns = {"token": -one, "start": 32 * one, "stop": 64 * one, "entry": one}
        joined = {name: np.concatenate([getattr(slots, name), column]) for name, column in columns.items()}
        slots = Slots(**joined, vectors=gist).then(ids[64:].numpy(), 64, 2)
        with torch.no_grad(), capturing([1]) as captured:
            reader([slots], np.arange(65)[None], last=1)
        hidden = captured.found[1][1]
        with torch.no_grad():
            read.append((hidden, reader([slots], np.arange(65)[None], last=32)))
    # Keys of layer 1 come from layer 0, which reads no gist here: all the same. The logits behind the gist differ.
    torch.testing.assert_close(read[0][0], read[1][0], atol=0, rtol=0)
    assert float((read[0][1] - read[1][1]).abs().max()) > 1e-3


def test_a_reluctant_reader_looks_at_gists_less() -> None:
    base = tiny_base("llama")
    mask = torch.ones(1, BLOCK, dtype=torch.bool)

    def read(reluctance: float, *, gist: bool = True) -> torch.Tensor:
        net = tiny_kv_gistnet(base, reluctance=reluctance)
        slots = slots_with_gist(net.encode_blocks(base, torch.arange(32)[None], mask)[0], np.arange(40, 60))
        places = np.arange(len(slots))[None]
        if not gist:
            slots, places = slots.take(np.flatnonzero(slots.token >= 0)), places[:, slots.token >= 0]
        with torch.no_grad():
            return SlotReader(base, net)([slots], places, last=4)

    without, distances = read(0.0, gist=False), []
    for reluctance in (0.0, 1.0, 3.0, 60.0):
        distances.append(float((read(reluctance) - without).abs().max()))
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 2 * distances[2]
    assert distances[3] < 1e-5


def test_a_window_that_ends_with_a_gist_cannot_predict() -> None:
    base = tiny_base("llama")
    net = tiny_kv_gistnet(base)
    gists = net.encode_blocks(base, torch.arange(32)[None], torch.ones(1, 32, dtype=torch.bool))[0]
    slots = slots_with_gist(gists, np.zeros(0, dtype=np.int64))
    with pytest.raises(BudgetError, match="raw tail"):
        SlotReader(base, net)([slots], np.arange(1)[None], last=1)


def test_a_base_that_does_not_take_our_attention_says_so() -> None:
    base = tiny_base("llama")  # lookup not enabled
    layout = KeyValueLayout(heads=((1, 0),), entries=1, head_width=8)
    one = {1: torch.zeros(1, 1, 1, 8)}
    memory = StoredMemory(layout=layout, keys=one, values=one, bias=torch.zeros(1, 1, 1, 1))
    with pytest.raises(UnsupportedModel, match="read no gist"):
        base.forward(base.embed(torch.arange(4)[None]), torch.arange(4)[None], memory=memory)
    with pytest.raises(UnsupportedModel, match="cannot be had"), capturing([0]):
        base.forward(base.embed(torch.arange(4)[None]), torch.arange(4)[None])


def test_soft_capped_attention_is_refused() -> None:
    base = tiny_base("llama")
    base.model.config.attn_logit_softcapping = 30.0
    with pytest.raises(UnsupportedModel, match="plain attention"):
        base.enable_lookup()


def test_impossible_layouts_are_errors() -> None:
    for heads, entries in (((), 1), (((0, 0), (0, 0)), 1), (((0, 0),), 0)):
        with pytest.raises(ConfigError):
            KeyValueLayout(heads=heads, entries=entries, head_width=8)
    with pytest.raises(ConfigError, match="reluctance"):
        KeyValueLayout(heads=((0, 0),), entries=1, head_width=8, reluctance=-0.5)


def test_numbers_go_where_they_came_from() -> None:
    layout = KeyValueLayout(heads=((2, 1), (0, 3), (2, 0)), entries=5, head_width=4)
    keys, values, scores = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4), torch.randn(2, 5)
    gists = layout.pack(keys, values, scores)
    assert gists.shape == (2, layout.width)
    for mine, found in zip((keys, values, scores), layout.unpack(gists), strict=True):
        torch.testing.assert_close(mine, found, atol=0, rtol=0)
    assert layout.layers == (0, 2)
    assert layout.heads_of(2) == [0, 1]
    torch.testing.assert_close(layout.of_layer(keys, 2), keys[:, :, 1:])
