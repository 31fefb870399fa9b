"""Reading a block back from its gist: a fresh pair reads some of it, and nothing that is masked gets in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megacontext.errors import ConfigError, InvalidInput, ModelMismatch
from megacontext.models.gistnet import GistNet, GistNetConfig
from megacontext.models.reconstruction import ReconstructionConfig, ReconstructionHead

D, V = 96, 300
CONFIG = ReconstructionConfig(width=D, input_rms=0.2, hidden=96, heads=2, layers=1)


def gistnet(vectors: int = 1, readout: str = "place_sum") -> GistNet:
    torch.manual_seed(0)
    return GistNet(
        GistNetConfig(width=D, output_rms=0.2, heads=2, layers=1, hidden=64, vectors=vectors, readout=readout)
    ).eval()


def embedding() -> Tensor:
    return 0.2 * torch.randn(V, D, generator=torch.Generator().manual_seed(1))


def encoded(net: GistNet, ids: Tensor, slots: int = 32) -> Tensor:
    children = embedding()[ids][:, :slots]
    mask = torch.ones(children.shape[:2], dtype=torch.bool)
    return net.encode(children, mask, torch.ones(len(ids), dtype=torch.int64))


def blocks(count: int = 24) -> Tensor:
    return torch.randint(0, V, (count, 32), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("vectors", "least"), [(1, 0.04), (2, 0.15), (4, 0.5)])
def test_a_fresh_pair_reads_back_far_more_than_chance(vectors: int, least: float) -> None:
    """Rotations keep the places of a sum apart: chance is 1 in 300; more vectors share the same places."""
    net, ids = gistnet(vectors), blocks()
    head = ReconstructionHead(replace(CONFIG, vectors=vectors))
    head.prime(net)
    with torch.no_grad():
        gists = encoded(net, ids)
        right = (head.logits(gists, embedding()).argmax(-1) == ids).float().mean()
        swapped = (head.logits(gists.roll(1, 0), embedding()).argmax(-1) == ids).float().mean()
    assert float(right) > least > 0.02 > float(swapped)


def test_other_readouts_start_as_a_bag_of_tokens() -> None:
    net, ids = gistnet(readout="softmax_pool"), blocks()
    head = ReconstructionHead(CONFIG)
    before = head.unbind.clone()
    head.prime(net)
    assert torch.equal(head.unbind, before)
    with torch.no_grad():
        guesses = head.logits(encoded(net, ids), embedding()).argmax(-1)
    found = torch.tensor([bool((row == guess[0]).any()) for row, guess in zip(ids, guesses, strict=True)])
    assert found.float().mean() > 0.5


def test_masked_children_have_no_influence_and_level_two_has_room() -> None:
    net = gistnet(vectors=2)
    with torch.no_grad():
        net.readout.add.normal_(std=0.1)
    children = torch.randn(3, 32, D)
    mask = torch.arange(32) < torch.tensor([32, 20, 1])[:, None]
    poisoned = torch.where(mask[..., None], children, torch.nan)
    level = torch.ones(3, dtype=torch.int64)
    torch.testing.assert_close(net.encode(poisoned, mask, level), net.encode(children, mask, level))
    whole = net.encode(torch.randn(3, 64, D), torch.ones(3, 64, dtype=torch.bool), level + 1)
    assert whole.shape == (3, 2, D) and whole.isfinite().all()


@pytest.mark.parametrize("slots", [4, 8, 32, 40, 64])
def test_every_child_moves_the_gist_at_any_number_of_slots(slots: int) -> None:
    net = gistnet()
    children = torch.randn(1, slots, D, requires_grad=True)
    net.encode(children, torch.ones(1, slots, dtype=torch.bool), torch.ones(1, dtype=torch.int64)).square()[
        ..., 0
    ].sum().backward()
    assert children.grad is not None and (children.grad.abs().sum(-1) > 0).all()


def test_stored_gists_do_not_depend_on_the_grouping() -> None:
    net, ids = gistnet(), blocks(7)
    with torch.no_grad():
        net.readout.add.normal_(std=0.1)
        children, mask = embedding()[ids], torch.ones(7, 32, dtype=torch.bool)
        together = net.encode_canonical(children, mask, 1)
        apart = torch.cat([net.encode_canonical(children[i : i + 1], mask[:1], 1) for i in range(7)])
    assert torch.equal(together, apart)


def test_saved_and_loaded_it_reads_the_same(tmp_path: Path) -> None:
    net, ids = gistnet(), blocks(4)
    head = ReconstructionHead(replace(CONFIG, base_fingerprint="a" * 32)).eval()
    head.prime(net)
    head.common.copy_(torch.arange(32))
    head.save_pretrained(tmp_path)
    back = ReconstructionHead.from_pretrained(tmp_path)
    with torch.no_grad():
        gists = encoded(net, ids)
        assert torch.equal(head(gists), back(gists))
    assert back.common.tolist() == list(range(32)) and back.fingerprint == head.fingerprint
    with pytest.raises(ModelMismatch, match="trained for the base model"):
        ReconstructionHead.from_pretrained(tmp_path, base_fingerprint="b" * 32)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"gists must be \[n, 1, 96\]"):
        ReconstructionHead(CONFIG)(torch.zeros(3, 2, D))
    with pytest.raises(ConfigError, match="twice the heads"):
        replace(CONFIG, heads=5)
    with pytest.raises(ConfigError, match="positive"):
        replace(CONFIG, input_rms=0.0)
