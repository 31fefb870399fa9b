from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.errors import ConfigError, InvalidInput, ModelMismatch
from megacontext.models.encoders import load_gistnet
from megacontext.models.gistnet import GistEncoder, GistNet
from megacontext.models.kv_gistnet import RECURRENCE, KeyValueGistNet
from megacontext.testing.tiny_bundle import tiny_gistnet, tiny_kv_gistnet
from megacontext.testing.tiny_models import tiny_base

BASE = tiny_base("llama")
torch.manual_seed(0)
NET = tiny_kv_gistnet(BASE)
TWO = tiny_kv_gistnet(BASE, vectors=2)


def blocks_of(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 250, (count, 32), generator=generator)
    fill = torch.randint(1, 33, (count, 1), generator=generator)
    return ids, torch.arange(32)[None] < fill


def test_it_is_a_gist_encoder() -> None:
    assert isinstance(NET, GistEncoder)
    assert NET.width == 4 * (2 * 2 * 8 + 1)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 9), cut=st.integers(1, 8), net=st.sampled_from([NET, TWO]))
def test_bits_do_not_depend_on_how_blocks_are_grouped(seed: int, count: int, cut: int, net: KeyValueGistNet) -> None:
    ids, mask = blocks_of(seed, count)
    together = net.encode_blocks(BASE, ids, mask)
    apart = torch.cat([net.encode_blocks(BASE, ids[at : at + cut], mask[at : at + cut]) for at in range(0, count, cut)])
    assert torch.equal(together, apart)
    turned = net.encode_blocks(BASE, ids.roll(1, 0), mask.roll(1, 0)).roll(-1, 0)
    assert torch.equal(together, turned)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), filling=st.integers(0, 249))
def test_filling_is_never_kept(seed: int, filling: int) -> None:
    ids, mask = blocks_of(seed, 5)
    other = torch.where(mask, ids, filling)
    gists = NET.encode_blocks(BASE, ids, mask)
    assert torch.equal(gists, NET.encode_blocks(BASE, other, mask))
    keys, values, scores = NET.layout.unpack(gists)
    there = (keys != 0).flatten(3).any(-1).flatten(1).sum(1)
    assert torch.equal(there, mask.sum(1).clamp(max=NET.config.entries))
    assert not scores.flatten(1)[~(keys != 0).flatten(3).any(-1).flatten(1)].any()
    assert not values.flatten(1, 2)[~(keys != 0).flatten(3).any(-1).flatten(1)].any()


def test_kept_are_the_tokens_with_the_highest_scores_in_their_own_order() -> None:
    ids, mask = blocks_of(3, 4)
    with torch.no_grad():
        scores = NET.scores(BASE.embed(ids), ids, mask).masked_fill(~mask, -torch.inf)
    for row in range(4):
        best = sorted(range(32), key=lambda at: -float(scores[row, at]))[: min(4, int(mask[row].sum()))]
        stored = NET.layout.unpack(NET.encode_blocks(BASE, ids, mask)[row])[2][0]
        torch.testing.assert_close(stored[: len(best)].float(), scores[row, sorted(best)], atol=2e-2, rtol=2e-3)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), net=st.sampled_from([NET, TWO]), dead=st.integers(0, 31))
def test_what_rises_a_level_is_the_best_of_all_children(seed: int, net: KeyValueGistNet, dead: int) -> None:
    ids, mask = blocks_of(seed, 32)
    children = net.encode_blocks(BASE, ids, mask)
    live = torch.ones(32, dtype=torch.bool)
    live[dead] = False
    slots = children.reshape(1, 32 * net.vectors, net.width).float()
    parent = net.encode_canonical(slots, live.repeat_interleave(net.vectors)[None], 2)
    keys, _, scores = net.layout.unpack(children[live].float())
    there = (keys != 0).flatten(3).any(-1)
    found = net.layout.unpack(parent[0].float())[2].flatten().sort(descending=True).values
    best = scores[there].sort(descending=True).values[: net.vectors * net.config.entries]
    # Random blocks: hardly any pair stands in two of them, and what does can only gain.
    assert bool((found[: len(best)] >= best - 0.01).all())
    assert float((found[: len(best)] - best).median()) < 0.5


def test_a_pair_that_comes_back_rises_above_a_rarer_one() -> None:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, 250, (32, 32), generator=generator)
    common = torch.tensor([3, 4])
    ids[::4, 10:12] = common
    net = tiny_kv_gistnet(BASE, layers=0, entries=31)
    net.rarity[4] = 0.0
    net.rarity[3] = 0.0
    mask = torch.ones(32, 32, dtype=torch.bool)
    children = net.encode_blocks(BASE, ids, mask)
    with torch.no_grad():
        alone = net.scores(BASE.embed(ids[:1]), ids[:1], mask[:1])[0, 11]
    few = tiny_kv_gistnet(BASE, layers=0, entries=31)
    parent = few.encode_canonical(children.reshape(1, 32, -1).float(), torch.ones(1, 32, dtype=torch.bool), 2)
    scores = net.layout.unpack(parent[0].float())[2].flatten()
    wanted = float(alone) + RECURRENCE * float(torch.tensor(8.0).log())
    assert bool((scores - wanted).abs().min() < 0.3)


def test_levels_may_be_grouped_in_any_way() -> None:
    """The score of a pair in eight blocks is the same from eight at once and from two groups of four."""
    net = tiny_kv_gistnet(BASE, layers=0, entries=32)
    block = torch.arange(32)[None].expand(8, -1)
    children = net.encode_blocks(BASE, block, torch.ones(8, 32, dtype=torch.bool))[:, 0]

    def parent(of: torch.Tensor) -> torch.Tensor:
        return net.encode_canonical(of[None].float(), torch.ones(1, len(of), dtype=torch.bool), 2)[0, 0]

    at_once = net.layout.unpack(parent(children))[2]
    in_two = net.layout.unpack(parent(torch.stack([parent(children[:4]), parent(children[4:])])))[2]
    torch.testing.assert_close(at_once.float(), in_two.float(), atol=0.03, rtol=1e-3)


def test_a_level_of_nothing_is_zero() -> None:
    nothing = NET.encode_canonical(torch.zeros(2, 32, NET.width), torch.zeros(2, 32, dtype=torch.bool), 2)
    assert not nothing.any()


def test_wrong_input_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="encode_blocks"):
        NET.encode_canonical(torch.zeros(1, 32, NET.width), torch.ones(1, 32, dtype=torch.bool), 1)
    with pytest.raises(InvalidInput, match="children"):
        NET.encode_canonical(torch.zeros(1, 32, 7), torch.ones(1, 32, dtype=torch.bool), 2)
    with pytest.raises(ModelMismatch, match="trained for the base"):
        NET.encode_blocks(tiny_base("llama", seed=5), *blocks_of(0, 1))
    with pytest.raises(ConfigError, match="vectors"):
        tiny_kv_gistnet(BASE, vectors=33)
    with pytest.raises(ConfigError, match="attention heads"):
        tiny_kv_gistnet(BASE, hidden=15)


def test_saved_and_loaded_it_is_the_same_and_told_apart(tmp_path: Path) -> None:
    NET.save_pretrained(tmp_path / "kv")
    loaded = load_gistnet(tmp_path / "kv", base_fingerprint=BASE.fingerprint)
    assert isinstance(loaded, KeyValueGistNet)
    assert loaded.fingerprint == NET.fingerprint
    assert loaded.config == NET.config
    tiny_gistnet(BASE).save_pretrained(tmp_path / "embedded")
    assert isinstance(load_gistnet(tmp_path / "embedded"), GistNet)
    with pytest.raises(ModelMismatch, match="type 'megacontext-kv-gistnet'"):
        GistNet.from_pretrained(tmp_path / "kv")


def test_means_of_a_block_are_as_many_as_its_entries() -> None:
    ids = torch.arange(32)[None]
    mask = torch.ones(1, 32, dtype=torch.bool)
    whole = tiny_kv_gistnet(BASE, entries=32, layers=0)
    whole.gains.data.fill_(1.0)
    every = whole.encode_blocks(BASE, ids, mask)
    keys = tiny_kv_gistnet(BASE, entries=32).layout.unpack(every.float())[0][0, 0]
    means = NET.layout.unpack(NET.mean_of_blocks(BASE, ids, mask).float())[0][0, 0]
    expected = NET.gains[0].detach() * keys.view(4, 8, *keys.shape[1:]).mean(dim=1)
    torch.testing.assert_close(means, expected, atol=2e-2, rtol=2e-2)
