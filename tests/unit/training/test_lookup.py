from __future__ import annotations

import numpy as np
import pytest
import torch

from megacontext.engine.slot_reader import SlotReader
from megacontext.errors import ConfigError
from megacontext.models.base_lm import BaseLM
from megacontext.models.kv_gistnet import KeyValueGistNet
from megacontext.models.kv_memory import StoredMemory
from megacontext.testing.slots import slots_with_gist
from megacontext.testing.tiny_bundle import tiny_kv_gistnet
from megacontext.testing.tiny_models import byte_tokenizer, tiny_base
from megacontext.training import batches
from megacontext.training.band import Bands
from megacontext.training.batches import lookup_batch
from megacontext.training.config import BaseShape, MixConfig
from megacontext.training.dataset import Blocks
from megacontext.training.induction import build_base
from megacontext.training.kv_band import BandMemory, draw_kept, farther_memory, lookup_band_logits
from megacontext.training.lookup_heads import find_layout, induction_scores


@pytest.fixture(scope="module")
def looking() -> BaseLM:
    """A base with the induction circuit, untrained but for matrices that start at zero and would hide what is read."""
    model = build_base(BaseShape(width=128, layers=3), vocab_size=258, eos=256)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if not parameter.any() and parameter.dim() == 2 and "layers.0." not in name:
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    return BaseLM.wrap(model, byte_tokenizer())


def test_the_heads_that_look_things_up_are_found(looking: BaseLM) -> None:
    scores = induction_scores(looking)
    assert scores.shape == (3, 4)
    layout = find_layout(looking)
    assert layout.layers == (1,)
    assert layout.head_width == 32
    assert layout.entries == 12 // len(layout.heads)
    assert float(scores[0].max()) < 0.2 < 0.5 < float(scores[1].max())
    assert find_layout(looking, heads=((2, 1),), entries=3).heads == ((2, 1),)


def test_a_base_without_such_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match="no head of this base looks things up"):
        find_layout(tiny_base("llama"))


@pytest.mark.parametrize(
    ("family", "heads"), [("llama", ((9, 0),)), ("llama", ((0, 7),)), ("qwen2", ((1, 0),)), ("mistral", ((0, 0),))]
)
def test_heads_that_are_not_there_or_see_no_far_past_are_refused(family: str, heads: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ConfigError, match="sees any distance"):
        find_layout(tiny_base(family), heads=heads)
    assert find_layout(tiny_base("qwen2"), heads=((0, 0),)).layers == (0,)


def test_a_banded_pass_is_what_a_window_reads(looking: BaseLM) -> None:
    """Where the gisted block was read alone, its gist from the same pass is the one that ingest stores."""
    net = tiny_kv_gistnet(looking, entries=6, layers=0)
    ids = torch.randint(0, 250, (1, 96), generator=torch.Generator().manual_seed(0))
    bands = Bands(starts=np.array([0, 1]), blocks=3)
    with torch.no_grad():
        embeds = looking.embed(ids)
        kept = draw_kept(net, embeds, ids, 1, noise=0.0, rng=np.random.default_rng(0))
        trained = lookup_band_logits(looking, net, embeds, kept, bands)[:, 32:]
        gist = net.encode_blocks(looking, ids[:, :32], torch.ones(1, 32, dtype=torch.bool))[0]
        slots = slots_with_gist(gist, ids[0, 32:].numpy())
        read = SlotReader(looking, net)([slots], np.arange(65)[None], last=64)
    torch.testing.assert_close(trained, read, atol=2e-2, rtol=1e-2)


def test_a_banded_pass_with_two_vectors_is_what_a_window_reads(looking: BaseLM) -> None:
    net = tiny_kv_gistnet(looking, entries=3, layers=0, vectors=2, position_stride=2)
    ids = torch.randint(0, 250, (1, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embeds = looking.embed(ids)
        kept = draw_kept(net, embeds, ids, 1, noise=0.0, rng=np.random.default_rng(0))
        trained = lookup_band_logits(looking, net, embeds, kept, Bands(starts=np.array([0, 1]), blocks=2))[:, 32:]
        gist = net.encode_blocks(looking, ids[:, :32], torch.ones(1, 32, dtype=torch.bool))[0]
        slots = slots_with_gist(gist, ids[0, 32:].numpy())
        positions = np.concatenate([[0, 2], 4 + np.arange(32)])[None]
        read = SlotReader(looking, net)([slots], positions, last=32)
    torch.testing.assert_close(trained, read, atol=2e-2, rtol=1e-2)


def test_a_token_behind_a_kept_pair_becomes_likelier(looking: BaseLM) -> None:
    """Untrained: the first token of a kept pair is seen again, and the one that followed it is expected."""
    net = tiny_kv_gistnet(looking, heads=find_layout(looking).heads, entries=32, head_width=32, layers=0)
    block = torch.arange(40, 72)[None]
    gist = net.encode_blocks(looking, block, torch.ones(1, 32, dtype=torch.bool))[0]
    other = net.encode_blocks(looking, block + 100, torch.ones(1, 32, dtype=torch.bool))[0]
    raw = np.array([7, 9, 50])
    gains = []
    for shown in (gist, other):
        slots = slots_with_gist(shown, raw)
        with torch.no_grad():
            logits = SlotReader(looking, net)([slots], np.arange(4)[None], last=1)
        gains.append(float(logits[0, -1].log_softmax(-1)[51]))
    assert gains[0] > gains[1] + 0.3


def test_noise_changes_what_is_kept_and_the_draw_repeats(looking: BaseLM) -> None:
    net = tiny_kv_gistnet(looking, entries=6, layers=0)
    ids = torch.randint(0, 250, (2, 128), generator=torch.Generator().manual_seed(3))
    embeds = looking.embed(ids)
    drawn = [draw_kept(net, embeds, ids, 3, noise=noise, rng=np.random.default_rng(1)).places for noise in (0.0, 5.0, 5.0)]
    assert drawn[0].shape == (2, 3, 6)
    assert torch.equal(drawn[1], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_gradients_reach_the_base_through_what_is_kept(looking: BaseLM) -> None:
    net = tiny_kv_gistnet(looking, heads=find_layout(looking).heads, entries=32, head_width=32, layers=0)
    ids = torch.cat([torch.arange(32), torch.arange(32)])[None]
    embeds = looking.embed(ids).detach().requires_grad_()
    kept = draw_kept(net, embeds, ids, 1, noise=0.0, rng=np.random.default_rng(0))
    logits = lookup_band_logits(looking, net, embeds, kept, Bands(starts=np.array([0, 1]), blocks=2))
    logits[:, 32:].logsumexp(-1).sum().backward()
    assert embeds.grad is not None
    assert float(embeds.grad[:, :32].abs().max()) > 0


def test_gists_before_a_row_are_what_a_window_reads(looking: BaseLM) -> None:
    """Two blocks that stand before the row, as gists, and a row of one group: the window of a memory at that place."""
    net = tiny_kv_gistnet(looking, entries=6, layers=0)
    ids = torch.randint(0, 250, (1, 128), generator=torch.Generator().manual_seed(2))
    far, row = ids[:, :64], ids[:, 64:]
    with torch.no_grad():
        embeds = looking.embed(row)
        kept = draw_kept(net, embeds, row, 0, noise=0.0, rng=np.random.default_rng(0))
        bands = Bands(starts=np.array([0]), blocks=2)
        farther = farther_memory(looking, net, far)
        trained = lookup_band_logits(looking, net, embeds, kept, bands, farther)
        alone = lookup_band_logits(looking, net, embeds, kept, bands)
        gists = net.encode_blocks(looking, far.view(2, 32), torch.ones(2, 32, dtype=torch.bool))
        slots = slots_with_gist(gists.flatten(0, 1), row[0].numpy())
        read = SlotReader(looking, net)([slots], np.arange(66)[None], last=64)
    torch.testing.assert_close(trained, read, atol=2e-2, rtol=1e-2)
    assert float((trained - alone).abs().max()) > 0.05


@pytest.mark.parametrize("strange", [0.0, 1.0])
def test_rows_see_what_stands_before_them_or_elsewhere(
    looking: BaseLM, strange: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = tiny_kv_gistnet(looking, entries=6, layers=0)
    ids = np.random.default_rng(0).integers(0, 250, (60, 32)).astype(np.uint16)
    zeros = np.zeros(60, dtype=np.uint32)
    train = Blocks(ids=ids, fill=np.full(60, 32, dtype=np.uint8), document=zeros, package=zeros)
    seen: list[torch.Tensor] = []

    def watched(base: BaseLM, net: KeyValueGistNet, past: torch.Tensor) -> StoredMemory:
        seen.append(past)
        return farther_memory(base, net, past)

    monkeypatch.setattr(batches, "farther_memory", watched)
    mix = MixConfig(rows=2, banded=1.0, blocks=4, group=(1, 2), repeats=0.0, farther=(3, 3), strange=strange)
    batch = lookup_batch(looking, net, train, np.random.default_rng(1), mix, 0.0)
    logits = batch.read().logits
    logits.sum().backward()
    assert logits.shape == (2, 127, looking.vocab_size) and seen[0].shape == (2, 96)
    stream = ids.ravel().tolist()
    joined = [[*past, *row] for past, row in zip(seen[0].tolist(), batch.ids.tolist(), strict=True)]
    follows = [any(stream[at : at + 224] == both for at in range(0, len(stream), 32)) for both in joined]
    assert follows == [not strange] * 2


def test_stretches_attend_as_the_mask_says(looking: BaseLM) -> None:
    """What is left out is what the mask hides."""
    net = tiny_kv_gistnet(looking, entries=6, layers=0)
    ids = torch.randint(0, 250, (2, 160), generator=torch.Generator().manual_seed(3))
    bands = Bands(starts=np.array([0, 2, 3]), blocks=5)
    with torch.no_grad():
        embeds = looking.embed(ids)
        kept = draw_kept(net, embeds, ids, bands.gisted, noise=0.0, rng=np.random.default_rng(0))
        memory = BandMemory(net, looking.rotary, kept, bands)
        positions = memory.positions.expand(2, -1)
        quick = looking.forward(embeds, positions, mask=memory.allow, memory=memory).logits
        assert memory.stretches == [64, 32, 64]
        memory.stretches = None
        dense = looking.forward(embeds, positions, mask=memory.allow, memory=memory).logits
    torch.testing.assert_close(quick, dense, atol=1e-4, rtol=1e-4)
