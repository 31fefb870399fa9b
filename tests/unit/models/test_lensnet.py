"""LensNet: bounded, legal, linear at the start, blind to padding, and it learns which way a score points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megacontext.errors import ConfigError, CorruptCheckpoint, InvalidInput
from megacontext.models.lensnet import LensNet, LensNetConfig, mask_illegal

WIDTH, FEATURES = 24, 5


def config(**changes: Any) -> LensNetConfig:
    return LensNetConfig(**{"width": WIDTH, "features": FEATURES, "hidden": 16, "tail": 8, **changes})


def trained(seed: int = 0) -> LensNet:
    torch.manual_seed(seed)
    net = LensNet(config()).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return net.requires_grad_(False)


def inputs(rng: torch.Generator, entries: int = 7, tail: int = 12, rows: int = 2) -> dict[str, Tensor]:
    return {
        "features": torch.randn(rows, entries, FEATURES, generator=rng) * 3,
        "embeds": torch.randn(rows, entries, WIDTH, generator=rng),
        "tail": torch.randn(rows, tail, WIDTH, generator=rng),
        "lod": torch.randint(0, 12, (rows, entries), generator=rng),
    }


def test_scores_are_bounded_and_untrained_ones_are_zero(rng: torch.Generator) -> None:
    given = inputs(rng)
    assert not LensNet(config())(**given).any()
    given["features"] *= 1e6
    scores = trained()(**given)
    assert scores.shape == (2, 7) and float(scores.abs().max()) <= 1.0 and scores.std() > 0.01


def test_illegal_directions_are_zero(rng: torch.Generator) -> None:
    given = inputs(rng)
    can_expand, can_collapse = (torch.rand(2, 7, generator=rng) > 0.5 for _ in range(2))
    free = trained()(**given)
    legal = trained()(**given, can_expand=can_expand, can_collapse=can_collapse)
    assert torch.equal(legal, mask_illegal(free, can_expand, can_collapse))
    assert float(legal[~can_expand].max()) <= 0.0 and float(legal[~can_collapse].min()) >= 0.0
    kept = (free > 0) & can_expand | (free < 0) & can_collapse
    assert torch.equal(legal[kept], free[kept]) and not legal[~kept].any()


def test_padding_has_no_influence_and_scores_zero(rng: torch.Generator) -> None:
    given, net = inputs(rng), trained()
    plain = net(**given)
    padded = {
        name: torch.cat([value, torch.full_like(value[:, :2], 3)], dim=1) for name, value in given.items() if name != "tail"
    }
    padded["features"][:, -2:], padded["embeds"][:, -2:] = float("nan"), float("inf")
    padded["tail"] = torch.cat([torch.full_like(given["tail"][:, :3], float("nan")), given["tail"]], dim=1)
    valid, tail_valid = torch.arange(9).expand(2, -1) < 7, torch.arange(15).expand(2, -1) >= 3
    scores = net(**padded, valid=valid, tail_valid=tail_valid)
    torch.testing.assert_close(scores[:, :7], plain, atol=1e-5, rtol=0)
    assert not scores[:, 7:].any()


def test_the_order_of_entries_does_not_matter_that_of_the_tail_does(rng: torch.Generator) -> None:
    given, net = inputs(rng, tail=6), trained()
    plain = net(**given)
    order = torch.randperm(7, generator=rng)
    turned = {name: value if name == "tail" else value[:, order] for name, value in given.items()}
    torch.testing.assert_close(net(**turned), plain[:, order], atol=1e-5, rtol=0)
    assert float((net(**{**given, "tail": given["tail"].flip(1)}) - plain).abs().max()) > 1e-3


def test_it_starts_from_a_linear_model(rng: torch.Generator) -> None:
    given, net = inputs(rng), LensNet(config())
    mean, std = torch.arange(FEATURES).float(), torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0])
    net.set_standardisation(mean, std)
    weight = torch.randn(FEATURES, generator=rng) * 0.1
    net.set_linear(weight, 0.05)
    z = ((given["features"] - mean) / torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0])).clamp(-8, 8)
    torch.testing.assert_close(net(**given), (z @ weight + 0.05).tanh())


def test_it_learns_to_score_what_pays_above_what_does_not(rng: torch.Generator) -> None:
    """Worth depends on whether an entry and the newest tail slot are of the same of two topics: no feature tells."""
    torch.manual_seed(0)
    net = LensNet(config(hidden=32))
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    topics = torch.randn(2, WIDTH, generator=rng)

    def batch() -> tuple[dict[str, Tensor], Tensor]:
        given = inputs(rng, entries=12, tail=2, rows=16)
        entry, newest = (torch.randint(0, 2, (16, n), generator=rng) for n in (12, 1))
        given["embeds"] = topics[entry] + 0.3 * given["embeds"]
        given["tail"][:, -1:] = topics[newest]
        return given, (entry == newest).float() - 0.5

    for _ in range(80):
        given, target = batch()
        loss = (net(**given) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    given, target = batch()
    agree = (net(**given).sign() == target.sign()).float().mean()
    assert float(agree) > 0.95


def test_saving_and_loading(tmp_path: Path, rng: torch.Generator) -> None:
    net = LensNet(config(feature_names=tuple("abcde"), gist_fingerprint="g"))
    net.set_standardisation(torch.ones(FEATURES), torch.full((FEATURES,), 2.0))
    net.set_linear(torch.ones(FEATURES), 0.5)
    net.save_pretrained(tmp_path)
    loaded = LensNet.from_pretrained(tmp_path)
    assert loaded.config == net.config and loaded.fingerprint == net.fingerprint
    given = inputs(rng)
    assert torch.equal(loaded(**given), net(**given))
    net.set_standardisation(torch.zeros(FEATURES), torch.ones(FEATURES))
    assert net.fingerprint != loaded.fingerprint
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CorruptCheckpoint):
        LensNet.from_pretrained(tmp_path)


def test_impossible_configurations_and_inputs(rng: torch.Generator) -> None:
    for changes in ({"heads": 3}, {"features": 0}, {"feature_names": ("one",)}):
        with pytest.raises(ConfigError):
            config(**changes)
    given, net = inputs(rng), trained()
    for name, value in (
        ("features", given["features"][..., 1:]),
        ("embeds", given["embeds"][:, 1:]),
        ("tail", given["tail"][:, :0]),
    ):
        with pytest.raises(InvalidInput, match=name):
            net(**{**given, name: value})


def test_without_layers_it_is_the_linear_model_in_nats(tmp_path: Path, rng: torch.Generator) -> None:
    net = LensNet(config(layers=0, unit="nats")).eval()
    net.set_linear(torch.arange(FEATURES).float(), 0.5)
    net.calibrate(2.0, 0.25)
    net.calibrate(0.5, 1.0)
    given = inputs(rng)
    expected = (net.standardise(given["features"]) @ torch.arange(FEATURES).float() + 0.5) + 1.125
    torch.testing.assert_close(net(**given), expected)
    given["embeds"] *= 3
    given["tail"] *= 3
    torch.testing.assert_close(net(**given), expected)
    net.save_pretrained(tmp_path)
    torch.testing.assert_close(LensNet.from_pretrained(tmp_path)(**given), expected)
    assert sum(parameter.numel() for parameter in net.parameters()) == FEATURES + 1


def test_relative_scores_are_not_calibrated_and_keep_their_name() -> None:
    with pytest.raises(ConfigError, match="unit='nats'"):
        LensNet(config()).calibrate(1.0, 0.0)
    with pytest.raises(ConfigError, match="relative or nats"):
        config(unit="bits")
    assert "calibration" not in LensNet(config()).state_dict()
