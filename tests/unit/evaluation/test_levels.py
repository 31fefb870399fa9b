"""LOD2 and LOD3 items: what stands where, and that controls are not the gists themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from megacontext.engine.bundle import Bundle
from megacontext.errors import ConfigError
from megacontext.evaluation.arms import Item, reader_over
from megacontext.evaluation.gists import GistBank
from megacontext.evaluation.items import Items, draw_items
from megacontext.evaluation.levels import LevelGeometry, level_arms, measure_level
from megacontext.models import GistNet
from megacontext.testing.tiny_bundle import tiny_gistnet
from megacontext.testing.tiny_models import tiny_base

NEAR, TAIL, H = 64, 32, 16


def bundle_with(vectors: int) -> Bundle:
    base = tiny_base("llama")
    torch.manual_seed(0)
    net = GistNet(replace(tiny_gistnet(base).config, vectors=vectors, levels=3))
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return Bundle(name="tiny", base=base, gists=net.eval())


def drawn(geometry: LevelGeometry, count: int = 4) -> Items:
    rng = np.random.default_rng(0)
    length = geometry.far + geometry.near + TAIL + H
    histories = [rng.integers(0, 250, length + 64) for _ in range(3)]
    return draw_items(histories, far=geometry.far, tail=geometry.near + TAIL, horizon=H, count=count, seed=1, align=32)


def geometry_of(lod: int, spans: int = 1) -> LevelGeometry:
    return LevelGeometry(lod=lod, spans=spans, near=NEAR, tail=TAIL, horizon=H)


@pytest.mark.parametrize("vectors", [1, 2])
def test_the_window_of_each_arm(vectors: int) -> None:
    bundle, geometry = bundle_with(vectors), geometry_of(2, spans=2)
    assert bundle.gists is not None
    items = drawn(geometry)
    bank = GistBank(items, bundle.base, bundle.gists)
    chosen = level_arms(bundle, items, geometry, bank)
    reader = reader_over(items.ids[0], {lod: bank(0, lod) for lod in (1, 2)})
    item = Item(ids=items.ids[0], far=items.far, tail=items.tail, reader=reader)
    windows = {name: arm(item)[0].context for name, arm in chosen.items()}
    slots = {name: len(window) - TAIL for name, window in windows.items()}
    near = NEAR // 32 * vectors
    assert slots["drop"] == near and slots["lod1"] == 64 * vectors + near
    assert {slots[name] for name in slots.keys() - {"drop", "lod1"}} == {2 * vectors + near}
    np.testing.assert_array_equal(windows["lod2"].token[-TAIL:], items.ids[0, items.context - TAIL : items.context])
    # The gist of a span is made of the LOD1 gists of that span, and of nothing else.
    children = torch.from_numpy(bank(0, 1)[32:64].astype(np.float32)).reshape(1, 32 * vectors, -1)
    own = bundle.gists.encode_canonical(children, torch.ones(1, 32 * vectors, dtype=torch.bool), 2)[0].numpy()
    np.testing.assert_array_equal(windows["lod2"].vectors[vectors : 2 * vectors], own)
    np.testing.assert_array_equal(windows["lod2"].vectors[2 * vectors :], windows["drop"].vectors)
    other = bank(items.other(0), 2)
    np.testing.assert_array_equal(windows["lod2_swapped"].vectors[: 2 * vectors], other[:2].reshape(2 * vectors, -1))
    for control in ("lod2_swapped", "lod2_mean", "lod2_noise"):
        assert not np.array_equal(windows[control].vectors[: 2 * vectors], windows["lod2"].vectors[: 2 * vectors])
        np.testing.assert_array_equal(windows[control].vectors[2 * vectors :], windows["drop"].vectors)


def test_figures_of_a_level() -> None:
    bundle, geometry = bundle_with(1), geometry_of(2)
    found = measure_level(bundle, drawn(geometry), geometry, seed=0)
    assert set(found["differences"]) == {"lod2-drop", "lod2-lod2_swapped", "lod2-lod2_mean", "lod2-lod2_noise", "lod1-drop"}
    assert found["gain"] == pytest.approx(-found["differences"]["lod2-drop"]["diff"])
    assert found["kept_of_lod1"] == pytest.approx(found["gain"] / -found["differences"]["lod1-drop"]["diff"])
    assert found["judged"] == (found["differences"]["lod1-drop"]["ci"][1] < 0)


def test_lod3_is_one_vector_for_32768_tokens() -> None:
    bundle, geometry = bundle_with(1), geometry_of(3)
    items = drawn(geometry, count=2)
    found = measure_level(bundle, items, geometry, seed=0)
    assert found["config"]["far"] == 32_768
    # 32 LOD2 gists fit the base, 1,024 LOD1 gists do not.
    assert set(found["arms"]) == {"drop", "lod3", "lod3_swapped", "lod3_mean", "lod3_noise", "lod2"}
    assert "kept_of_lod1" not in found and abs(found["gain"]) > 0


def test_a_level_that_does_not_fit_is_an_error() -> None:
    geometry = geometry_of(2, spans=500)
    with pytest.raises(ConfigError, match="no room for 500 LOD2 gists"):
        measure_level(bundle_with(1), drawn(geometry_of(2)), geometry, seed=0)
