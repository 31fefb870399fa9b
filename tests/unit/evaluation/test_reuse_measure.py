"""What reuse costs is measured against exact reuse, over the same windows."""

from __future__ import annotations

import numpy as np
import pytest

from megacontext.engine.bundle import Bundle
from megacontext.engine.kv_cache import WindowCache
from megacontext.engine.policies import Random
from megacontext.engine.reuse import EXACT, Patched, Reuse
from megacontext.errors import ConfigError
from megacontext.evaluation.arms import make_reader
from megacontext.evaluation.reuse import TraceConfig, decode, measure_reuse, prefilled, record, replay
from megacontext.models.positions import WindowRanks
from megacontext.testing.tiny_bundle import tiny_kv_gistnet
from megacontext.testing.tiny_models import tiny_base

CONFIG = TraceConfig(far=384, decoded=40, budget=192, recent=64)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    base = tiny_base("llama")
    return Bundle(name="tiny", base=base, gists=tiny_kv_gistnet(base))


def history(seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(0, 250, 440)


def test_a_trace_holds_every_token_once_and_its_windows_change(bundle: Bundle) -> None:
    ids = history()[: CONFIG.far + CONFIG.decoded]
    trace = record(ids, make_reader(ids, bundle.gists, bundle.base), Random(), 8, CONFIG)
    np.testing.assert_array_equal(np.concatenate([chunk.following for chunk in trace.chunks]), ids[CONFIG.far :])
    assert trace.edits >= trace.expansions > 0
    cache = WindowCache(bundle.base, bundle.gists, WindowRanks())
    found = replay(trace, cache)
    assert found.nll.shape == (CONFIG.decoded,) and found.refocuses == 4
    assert 0 < found.again <= prefilled(trace, cache)
    behind, single = decode(trace, WindowCache(bundle.base, bundle.gists, WindowRanks()))
    assert len(behind) == 4 and len(single) == 5 * 7


def test_exact_reuse_differs_by_nothing_and_patches_read_less(bundle: Bundle) -> None:
    options: dict[str, Reuse] = {"exact": EXACT, "patched-0": Patched()}
    records = measure_reuse(bundle, [history(1), history(2)], Random(), intervals=(8, 16), options=options, config=CONFIG)
    exact = [each for each in records if each["option"] == "exact"]
    patched = [each for each in records if each["option"] == "patched-0"]
    assert [each["interval"] for each in exact] == [8, 16]
    for mine, theirs in zip(exact, patched, strict=True):
        assert mine["nll_difference"] == 0 and theirs["nll_difference"] != 0
        assert mine["prefill_per_refocus"] == theirs["prefill_per_refocus"] >= mine["token_forwards_per_refocus"]
        assert theirs["token_forwards_saving"] > mine["token_forwards_saving"] >= 1
        assert theirs["total_over_plain"] >= theirs["passes_over_plain"]


def test_what_cannot_be_compared_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="exact"):
        measure_reuse(bundle, [history()], Random(), options={"patched-0": Patched()}, config=CONFIG)
    with pytest.raises(ConfigError, match="raw tail"):
        TraceConfig(far=100)
