"""GistNet: starts as the mean, ignores what is masked, and stored gists do not depend on how blocks were grouped."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megacontext.errors import ConfigError, CorruptCheckpoint, InvalidInput, ModelMismatch, ModelNotFound
from megacontext.models.canonical import ROWS as CANONICAL_ROWS
from megacontext.models.gist_baselines import MeanPoolGist, RandomGist
from megacontext.models.gistnet import GistEncoder, GistNet, GistNetConfig
from megacontext.models.place_readout import PLACE_SUM
from megacontext.models.readouts import READOUTS

WIDTH, RMS = 48, 0.2


def trained(readout: str = "softmax_pool", *, vectors: int = 1, hidden: int | None = None, width: int = WIDTH) -> GistNet:
    """A network whose zero-initialised parts are no longer zero."""
    torch.manual_seed(0)
    net = GistNet(GistNetConfig(width=width, output_rms=RMS, readout=readout, vectors=vectors, hidden=hidden)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net


def blocks(count: int, *, slots: int = 32, width: int = WIDTH, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(count, slots, generator=rng) > 0.3
    mask[:, 0] = True
    return torch.randn(count, slots, width, generator=rng) * RMS, mask


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


ENCODERS: dict[str, GistEncoder] = {
    **{f"{name}-{g}": trained(name, vectors=g) for name in READOUTS for g in (1, 3)},
    "narrow": trained(hidden=32),
    "odd width": trained(width=72),
    "mean pool": MeanPoolGist(WIDTH, RMS),
    "random": RandomGist(WIDTH, RMS, vectors=2),
}


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_stored_gists_do_not_depend_on_grouping_or_place(name: str) -> None:
    encoder = ENCODERS[name]
    children, mask = blocks(7, width=72 if name == "odd width" else WIDTH)
    together = encoder.encode_canonical(children, mask, 1)
    assert together.dtype == torch.float16 and together.shape == (7, encoder.vectors, children.shape[2])
    for step in (1, 3, 5):
        pieces = [encoder.encode_canonical(children[i : i + step], mask[i : i + step], 1) for i in range(0, 7, step)]
        assert torch.equal(torch.cat(pieces), together), f"in pieces of {step}"
    for turn in (1, 2, CANONICAL_ROWS - 1):
        turned = encoder.encode_canonical(children.roll(turn, 0), mask.roll(turn, 0), 1)
        assert torch.equal(turned.roll(-turn, 0), together), f"moved by {turn}"


@pytest.mark.parametrize("readout", sorted(READOUTS))
def test_place_in_the_canonical_batch_does_not_matter_before_rounding(readout: str, threads: int) -> None:
    net = trained(readout, vectors=2)
    children, mask = blocks(CANONICAL_ROWS)
    level = torch.ones(CANONICAL_ROWS, dtype=torch.long)
    with torch.no_grad():
        plain = net.encode(children, mask, level)
        for turn in (1, 2):
            turned = net.encode(children.roll(turn, 0), mask.roll(turn, 0), level)
            assert torch.equal(turned.roll(-turn, 0), plain)


@settings(max_examples=8)
@given(cuts=st.lists(st.integers(1, 39), max_size=6), order=st.permutations(range(40)), level=st.integers(1, 6))
def test_any_grouping_in_any_order(cuts: list[int], order: list[int], level: int) -> None:
    encoder = ENCODERS["softmax_pool-1"]
    children, mask = blocks(40, seed=3)
    expected = encoder.encode_canonical(children, mask, level)
    edges = [0, *sorted(set(cuts)), 40]
    rows = torch.tensor(order)
    pieces = [encoder.encode_canonical(children[rows[a:b]], mask[rows[a:b]], level) for a, b in itertools.pairwise(edges)]
    assert torch.equal(torch.cat(pieces), expected[rows])


def test_levels_above_take_all_vectors_of_their_children() -> None:
    net = trained(vectors=2)
    children, mask = blocks(32)
    first = net.encode_canonical(children, mask, 1)
    second = net.encode_canonical(first.reshape(1, 64, WIDTH), torch.ones(1, 64, dtype=torch.bool), 2)
    assert second.shape == (1, 2, WIDTH)
    rms = second.float().square().mean(dim=-1).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, RMS), rtol=1e-2, atol=0)


def test_no_blocks_give_no_gists() -> None:
    for encoder in ENCODERS.values():
        width = 72 if encoder is ENCODERS["odd width"] else WIDTH
        assert encoder.encode_canonical(torch.zeros(0, 32, width), torch.zeros(0, 32, dtype=torch.bool), 1).shape[0] == 0


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(set(ENCODERS) - {"odd width"})), junk=st.sampled_from([float("nan"), float("inf"), 1e30, -1.0])
)
def test_masked_children_have_no_influence(name: str, junk: float) -> None:
    encoder = ENCODERS[name]
    children, mask = blocks(5)
    other = torch.where(mask[..., None], children, junk)
    assert torch.equal(encoder.encode_canonical(children, mask, 1), encoder.encode_canonical(other, mask, 1))


def test_masked_children_get_no_gradient() -> None:
    net = trained()
    children, mask = blocks(3)
    children.requires_grad_(True)
    net.encode(children, mask, torch.ones(3, dtype=torch.long)).pow(3).sum().backward()
    assert children.grad is not None
    assert float(children.grad[~mask].abs().max()) == 0.0
    assert float(children.grad[mask].abs().amax(dim=-1).min()) > 0.0


def test_a_block_without_live_children_gives_zeros() -> None:
    for name in set(ENCODERS) - {"odd width", "random"}:
        gists = ENCODERS[name].encode_canonical(torch.randn(2, 32, WIDTH), torch.zeros(2, 32, dtype=torch.bool), 1)
        assert gists.isfinite().all(), name
    assert not MeanPoolGist(WIDTH, RMS).encode_canonical(torch.randn(2, 32, WIDTH), torch.zeros(2, 32) > 0, 1).any()


@pytest.mark.parametrize("readout", sorted(READOUTS.keys() - {PLACE_SUM}))
def test_untrained_it_is_the_mean(readout: str) -> None:
    net = GistNet(GistNetConfig(width=WIDTH, output_rms=RMS, readout=readout)).eval()
    children, mask = blocks(6)
    mean = MeanPoolGist(WIDTH, RMS).encode_canonical(children, mask, 1)
    torch.testing.assert_close(net.encode_canonical(children, mask, 1), mean, atol=1e-3, rtol=1e-2)


def test_several_pools_start_at_different_parts() -> None:
    net = GistNet(GistNetConfig(width=WIDTH, output_rms=RMS, vectors=2)).eval()
    children = torch.zeros(1, 32, WIDTH)
    children[:, :16, 0], children[:, 16:, 1] = 1.0, 1.0
    first, second = net.encode(children, torch.ones(1, 32, dtype=torch.bool), torch.ones(1, dtype=torch.long))[0]
    assert first[0] > 2 * first[1] and second[1] > 2 * second[0]


def test_order_and_level_matter_once_trained() -> None:
    net = trained()
    children, mask = blocks(4)
    mask[:] = True
    plain = net.encode_canonical(children, mask, 1)
    assert not torch.equal(plain, net.encode_canonical(children.flip(1), mask, 1))
    assert not torch.equal(plain, net.encode_canonical(children, mask, 2))
    assert torch.equal(net.encode_canonical(children, mask, 4), net.encode_canonical(children, mask, 9))


def test_saving_and_loading(tmp_path: Path) -> None:
    net = trained("query", vectors=2, hidden=32)
    net.save_pretrained(tmp_path)
    loaded = GistNet.from_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert loaded.config == net.config and loaded.fingerprint == net.fingerprint
    children, mask = blocks(3)
    assert torch.equal(loaded.encode_canonical(children, mask, 1), net.encode_canonical(children, mask, 1))


def test_the_fingerprint_follows_weights_and_configuration() -> None:
    net = trained()
    before = net.fingerprint
    assert net.fingerprint == before == trained().fingerprint
    with torch.no_grad():
        next(net.parameters())[0] += 1.0
    assert net.fingerprint != before
    other = GistNet(GistNetConfig(width=WIDTH, output_rms=RMS, base_fingerprint="b"))
    other.load_state_dict(trained().state_dict())
    assert other.fingerprint != before
    names = {encoder.fingerprint for encoder in ENCODERS.values()}
    assert len(names) == len(ENCODERS)


def test_another_base_is_refused(tmp_path: Path) -> None:
    GistNet(GistNetConfig(width=WIDTH, output_rms=RMS, base_fingerprint="a" * 32)).save_pretrained(tmp_path)
    assert GistNet.from_pretrained(tmp_path, base_fingerprint="a" * 32)
    with pytest.raises(ModelMismatch, match="bbbb"):
        GistNet.from_pretrained(tmp_path, base_fingerprint="b" * 32)


@pytest.mark.parametrize("damage", ["cut", "gone", "config", "field", "other shape"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    trained().save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    facts = json.loads(config.read_text())
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "gone":
        weights.unlink()
    elif damage == "config":
        config.write_text("{")
    elif damage == "field":
        config.write_text(json.dumps({**facts, "surprise": 1}))
    else:
        config.write_text(json.dumps({**facts, "layers": 3}))
    with pytest.raises(CorruptCheckpoint, match=str(tmp_path)):
        GistNet.from_pretrained(tmp_path)


def test_no_checkpoint_and_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="save_pretrained"):
        GistNet.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelMismatch, match="llama"):
        GistNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"readout": "max"}, {"heads": 5}, {"vectors": 0}, {"vectors": 33}, {"layers": 0}, {"output_rms": 0.0}]
)
def test_impossible_configurations(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        GistNetConfig(**{"width": WIDTH, "output_rms": RMS, **changes})  # type: ignore[arg-type]


def test_impossible_children() -> None:
    net = trained()
    children, mask = blocks(2)
    for bad in ((children[..., 1:], mask, 1), (children, mask[:, 1:], 1), (children, mask.float(), 1), (children, mask, 0)):
        with pytest.raises(InvalidInput):
            net.encode_canonical(*bad)


def test_fields_that_came_later_change_a_fingerprint_only_where_they_are_set() -> None:
    """Memories and LensNets name the GistNet that they were made with."""
    torch.manual_seed(0)
    net = GistNet(GistNetConfig(width=WIDTH, output_rms=RMS))
    spelt = GistNet(GistNetConfig(width=WIDTH, output_rms=RMS, position_stride=1))
    spelt.load_state_dict(net.state_dict())
    apart = GistNet(GistNetConfig(width=WIDTH, output_rms=RMS, position_stride=6))
    apart.load_state_dict(net.state_dict())
    assert net.fingerprint == spelt.fingerprint != apart.fingerprint
