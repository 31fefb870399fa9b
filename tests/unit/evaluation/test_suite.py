"""The whole of ``bench quality`` on a tiny bundle: the form of its result, and what is left out where it does not apply."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from megacontext.engine.bundle import Bundle, load_bundle
from megacontext.errors import ConfigError, DatasetError
from megacontext.evaluation.suite import NAMES, QualityConfig, Source, best_intervals, finite, run
from megacontext.evaluation.tables import LABELS, quality_markdown
from megacontext.models import GistNet
from megacontext.models.bi_encoder import BiEncoder, BiEncoderConfig
from megacontext.models.reconstruction import ReconstructionConfig, ReconstructionHead
from megacontext.testing.tiny_bundle import save_tiny_bundle, tiny_gistnet
from megacontext.training.dataset import to_blocks

SMALL = QualityConfig(
    items=4,
    tail=32,
    horizon=32,
    far=256,
    oracle_items=2,
    lod2_items=2,
    lod3_items=0,
    budgets=("1/4", "1/16"),
    renewals=(8,),
    renewal_items=3,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(save_tiny_bundle(tmp_path_factory.mktemp("bundle")))


def source_of(**changes: Any) -> Source:
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, 250, 6000) for _ in range(3)]
    return replace(Source(histories=histories, closed_by=0, name="noise"), **changes)


class _Counted:
    """Counts what a stage reports."""

    def __init__(self) -> None:
        self.done: dict[str, tuple[int, int]] = {}

    @contextmanager
    def __call__(self, name: str, total: int) -> Iterator[Callable[[], None]]:
        done = [0]

        def advance() -> None:
            done[0] += 1

        yield advance
        self.done[name] = (done[0], total)


@pytest.fixture(scope="module")
def result(bundle: Bundle) -> dict[str, Any]:
    torch.manual_seed(0)
    dense = BiEncoder(BiEncoderConfig(width=bundle.base.width, hidden=8))
    return run(bundle, source_of(), SMALL, _Counted(), dense=dense)


def test_the_result_has_the_form_of_the_benchmark(result: dict[str, Any], bundle: Bundle) -> None:
    assert {"gate", "arms", "differences", "budgets", "lod2", "by_distance", "unneeded_cost"} <= set(result)
    gists = {"full", "drop", "recency", "recency_sinks", "mean", "rarest", "noise", "swapped", "gist"}
    assert set(result["arms"]) == gists
    for arm in result["arms"].values():
        assert {"nll", "nll_ci", "delta_nll", "slots", "far_copy", "token_forwards"} <= set(arm)
    assert {"gist-drop", "gist-recency", "gist-mean", "gist-rarest", "gist-noise", "gist-swapped"} <= set(result["differences"])
    assert all({"diff", "ci", "far_copy"} == set(each) for each in result["differences"].values())
    quarter = result["budgets"]["1/4"]
    assert quarter["slots"] == 64
    assert set(quarter["arms"]) == {
        *("recency", "recency_sinks", "suffix", "bm25", "dense"),
        *("random_expand", "recent_expand", "cosine", "megacontext", "oracle"),
    }
    assert set(quarter["differences"]) >= {f"megacontext-{other}" for other in set(quarter["arms"]) - {"megacontext", "oracle"}}
    assert quarter["openings"] == 1 and quarter["arms"]["dense"]["renewal"] == 16
    assert quarter["arms"]["oracle"]["items"] == 2
    assert set(quarter["renewal"]) == {"16", "8"}
    assert quarter["renewal"]["16"]["items"] == quarter["renewal"]["8"]["items"] == 3
    assert set(quarter["renewal"]["8"]["arms"]) == set(quarter["arms"])
    assert "items" not in quarter["renewal"]["8"]["arms"]["suffix"]
    assert quarter["renewal"]["8"]["arms"]["oracle"]["token_forwards"] > quarter["arms"]["oracle"]["token_forwards"]
    # 16 slots for 8 gists: nothing can be expanded, so nothing can be shared with the oracle.
    least = result["budgets"]["1/16"]
    assert least["openings"] == 0 and least["arms"]["megacontext"]["nll"] == pytest.approx(result["arms"]["gist"]["nll"])
    assert not {"oracle", "random_expand", "recent_expand", "cosine"} & set(least["arms"])
    assert "share_of_oracle" not in least and "megacontext-gist" not in least["differences"]
    assert "megacontext-suffix" in least["differences"]
    assert set(result["by_distance"]) == {"1-4", "5-16", "17-32"}
    assert result["unneeded_cost"]["gists"] == 8 and result["unneeded_cost"]["raw_tokens"] == 256 + 32
    config = result["config"]
    assert config["overlap"] == {"checked": False} and config["base"] == bundle.base.fingerprint
    assert "document" in config["resampled_by"] and config["histories"] <= 3


def test_it_is_json_and_a_table(result: dict[str, Any]) -> None:
    back = json.loads(json.dumps(result, allow_nan=False))
    table = quality_markdown(back)
    for name in ("gist", "rarest", "megacontext", "oracle", "suffix"):
        assert LABELS[name] in table
    for heading in (
        "**Budget 1/4",
        "**Budget 1/16",
        "by renewal interval (3 items)",
        "Nothing to choose",
        "LOD2",
        "tokens 5–16",
        "unrelated history",
        "Gate: ",
    ):
        assert heading in table
    assert f"{back['arms']['gist']['nll']:.3f}" in table


def test_every_label_is_an_arm_and_every_arm_has_one() -> None:
    assert set(LABELS) == set(NAMES) - {"unneeded", "lod2", "lod3", "reconstruction"}


def test_the_same_seed_gives_the_same_result(bundle: Bundle, result: dict[str, Any]) -> None:
    config = replace(SMALL, arms=("gist", "random_expand", "oracle"), renewals=())
    again = run(bundle, source_of(), config, _Counted())
    assert set(again["arms"]) == {"full", "drop", "gist"}
    assert set(again["budgets"]["1/4"]["arms"]) == {"random_expand", "oracle"}
    assert not {"lod2", "unneeded_cost", "real"} & set(again)
    assert again["arms"]["gist"] == result["arms"]["gist"]
    for name in ("random_expand", "oracle"):
        assert again["budgets"]["1/4"]["arms"][name] == result["budgets"]["1/4"]["arms"][name]


def test_progress_counts_every_item(bundle: Bundle) -> None:
    counted = _Counted()
    run(bundle, source_of(), replace(SMALL, arms=("gist", "lod2")), counted)
    assert counted.done == {"items": (4, 4), "LOD2 behind": (2, 2), "LOD2 adjacent": (2, 2)}


def test_arms_are_renewed_at_intervals_of_their_own(bundle: Bundle, result: dict[str, Any]) -> None:
    own = best_intervals(result)
    assert set(own) == {*("suffix", "bm25", "dense", "random_expand", "recent_expand", "cosine", "megacontext", "oracle")}
    assert set(own.values()) <= {16, 8}
    config = replace(SMALL, arms=("suffix", "bm25"), renewals=(), own={"suffix": 8})
    found = run(bundle, source_of(), config, _Counted())["budgets"]["1/4"]["arms"]
    assert found["suffix"]["renewal"] == 8 and found["bm25"]["renewal"] == 16
    assert found["suffix"]["token_forwards"] > result["budgets"]["1/4"]["arms"]["suffix"]["token_forwards"]
    assert found["bm25"]["nll"] == result["budgets"]["1/4"]["arms"]["bm25"]["nll"]
    with pytest.raises(ConfigError, match="--renewals"):
        best_intervals({"budgets": {"1/4": {"arms": {}}}})
    with pytest.raises(ConfigError, match="without a renewal interval"):
        QualityConfig(own={"recency": 8})


def test_two_vectors_a_gist(bundle: Bundle) -> None:
    torch.manual_seed(0)
    net = GistNet(replace(tiny_gistnet(bundle.base).config, vectors=2))
    found = run(replace(bundle, gists=net, lens=None), source_of(), replace(SMALL, renewals=()), _Counted())
    assert found["arms"]["gist"]["slots"] == found["arms"]["recency"]["slots"] == 16
    assert found["config"]["vectors"] == 2
    assert "megacontext" not in found["budgets"]["1/4"]["arms"] and "oracle" in found["budgets"]["1/4"]["arms"]


def test_tokens_are_read_back_where_a_head_was_trained(bundle: Bundle) -> None:
    assert isinstance(bundle.gists, GistNet)
    torch.manual_seed(0)
    head = ReconstructionHead(
        ReconstructionConfig(width=bundle.base.width, input_rms=bundle.base.embedding_rms, hidden=16, heads=2, layers=1)
    )
    config = replace(SMALL, arms=("gist", "reconstruction"))
    found = run(bundle, source_of(), config, _Counted(), head=head)["reconstruction"]
    assert found["blocks"] == 4 * 256 // 32 and found["scored"] == 4 * 256
    assert {"tokens", "tokens_ci", "swapped", "common", "tokens_minus_common_ci"} <= set(found)
    assert "reconstruction" not in run(bundle, source_of(), config, _Counted())


def test_a_base_without_gists_is_measured_without_them(bundle: Bundle) -> None:
    found = run(replace(bundle, gists=None, lens=None), source_of(), SMALL, _Counted())
    assert set(found["arms"]) == {"full", "drop", "recency", "recency_sinks"}
    assert set(found["budgets"]["1/4"]["arms"]) == {"recency", "recency_sinks", "suffix", "bm25"}
    assert not {"lod2", "unneeded_cost", "real"} & set(found)
    quality_markdown(found)


def test_a_base_that_cannot_read_the_far_context_raw_is_not_judged(bundle: Bundle) -> None:
    config = replace(SMALL, far=1024, budgets=("1/4",), lod2_items=0, oracle_items=0)
    found = run(bundle, source_of(), config, _Counted())
    assert found["gate"] == {"judged": False}
    assert "full" not in found["arms"] and "recovered" not in found["arms"]["gist"]
    assert "not judged" in quality_markdown(found)


def test_training_text_is_refused_in_the_whole_run(bundle: Bundle) -> None:
    source = source_of()
    leaked = to_blocks(source.histories[0].tolist(), 0)
    with pytest.raises(DatasetError, match="training split"):
        run(bundle, replace(source, training=leaked), SMALL, _Counted())
    other = to_blocks(np.random.default_rng(5).integers(0, 250, 4000).tolist(), 0)
    found = run(bundle, replace(source, training=other), replace(SMALL, arms=("gist",)), _Counted())
    assert found["config"]["overlap"]["checked"] and found["config"]["overlap"]["items_left_out"] == 0


def test_bad_settings_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"no arm named gits: one of full, drop"):
        QualityConfig(arms=("gits",))
    with pytest.raises(ConfigError, match="positive"):
        QualityConfig(renewals=(0,))


def test_what_is_no_number_is_absent() -> None:
    given = {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": np.float64(2)}, "e": (1, 2), "f": None, "g": "x"}
    assert finite(given) == {"c": {"d": 2.0}, "e": [1, 2], "g": "x"}
