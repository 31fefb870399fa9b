from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from megacontext.errors import ConfigError
from megacontext.evaluation.speed_bench import RandomLlama, SpeedBenchConfig, run
from megacontext.evaluation.speed_bench.bases import reaching
from megacontext.evaluation.speed_bench.content import Code
from megacontext.evaluation.speed_bench.reading import Decoder, Prefill, filled, slot_bytes
from megacontext.evaluation.speed_bench.summary import summary
from megacontext.evaluation.speed_bench.tables import aim_rows, decode_rows, ingest_rows, profile_rows, refocus_rows
from megacontext.testing.tiny_bundle import save_tiny_bundle
from megacontext.testing.tiny_models import byte_tokenizer, tiny_base
from tools.report import speed as page

TINY = SpeedBenchConfig(
    histories=(1024, 2048),
    budget=256,
    recent=64,
    interval=4,
    rounds=2,
    full=(64, 4096),
    first_token_history=2048,
    chunk=16,
    depths=(0, 256),
    repeats=1,
    refocuses=2,
    tries=2,
    intervals=(8,),
    reuse_items=0,
    memory=0,
    policy="random",
    random=RandomLlama(width=32, layers=2, heads=2, intermediate=48, gist_hidden=32),
)


@contextmanager
def unseen(description: str, total: int) -> Iterator[Callable[[], None]]:
    yield lambda: None


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("speed")
    model = save_tiny_bundle(place / "model", key_value=True)
    found = run(str(model), TINY, unseen, place)
    assert [path.name for path in place.iterdir()] == ["model"]
    return json.loads(json.dumps(found, allow_nan=False))  # type: ignore[no-any-return]


def test_every_history_and_arm_of_both_bases_is_there(result: dict[str, Any]) -> None:
    for base in ("bundle", "random"):
        arms = [each["arm"] for each in result["decode"] if each["base"] == base]
        assert arms == ["megacontext"] * 2 + ["sliding"] + ["full"] * 2
        windows = [each for each in result["decode"] if each["base"] == base and each["arm"] == "megacontext"]
        slots = [each["slots"] for each in windows]
        assert max(slots) - min(slots) <= 64 and max(slots) <= TINY.budget, "windows are equally full"
        assert windows[0]["history"] < windows[1]["history"]


def test_the_random_base_replays_the_edits_of_the_bundle(result: dict[str, Any]) -> None:
    by_base = {base: [each for each in result["refocus"] if each["base"] == base] for base in ("bundle", "random")}
    assert [each["reuse"] for each in by_base["bundle"]] == ["exact", "none", "patched-0", "patched-16"]
    for ours, theirs in zip(by_base["bundle"], by_base["random"], strict=True):
        assert ours["edits_per_refocus"] == theirs["edits_per_refocus"] > 0


def test_reuse_spares_what_a_fresh_prefill_reads(result: dict[str, Any]) -> None:
    for base in ("bundle", "random"):
        saved = {each["reuse"]: each["token_forwards_saving"] for each in result["refocus"] if each["base"] == base}
        assert saved["none"] == 1.0 and saved["exact"] >= 1.0 and saved["patched-0"] > 1.0


def test_the_summary_has_the_worst_base_and_no_figure_that_was_not_measured(result: dict[str, Any]) -> None:
    found, by_base = result["summary"], result["summary"]["by_base"]
    assert found == json.loads(json.dumps(summary(result)))
    assert found["ingest_over_prefill"] == min(each["ingest_over_prefill"] for each in by_base.values())
    assert found["total_over_sliding_window"] == max(each["total_over_sliding_window"] for each in by_base.values())
    assert "memory_ratio_longest_to_shortest" not in found and "reuse_nll_difference" not in found
    assert found["roofline_share"] == by_base["random"]["roofline_share"] > 0


def test_tables_have_a_row_for_every_record(result: dict[str, Any]) -> None:
    assert len(decode_rows(result)) == len(result["decode"]) == 10
    assert len(refocus_rows(result)) == len(result["refocus"])
    assert len(ingest_rows(result)) == len(result["ingest"])
    assert len(profile_rows(result)) == 2
    verdicts = {verdict for *_, verdict in aim_rows(result)}
    assert verdicts <= {"met", "**missed**", "not an aim"}


def test_the_page_shows_every_record_and_draws_every_arm(result: dict[str, Any]) -> None:
    for block in (page.decode, page.refocus, page.profile, page.ingest, page.first_token, page.roofline, page.aims):
        assert block(result).count("\n") >= 3
    drawn = page.drawn(result)
    assert drawn == page.drawn(result) and all(label in drawn for label, _ in page.ARMS.values())
    busy = {**result, "quick": True, "environment": {"threads": 1, "load": [9.0, 8.0]}}
    assert "busy" in page.load(busy) and "Nothing else" in page.load(
        {**busy, "environment": {"threads": 1, "load": [0.1, 1.0]}}
    )


def test_a_prefill_adds_up_what_its_pieces_take() -> None:
    pieces = Prefill(10, [(0, 1.0), (100, 2.0)])
    # The pieces begin at 0, 10, 20: 1.0 + 1.1 + 1.2 seconds.
    assert pieces.seconds(30) == pytest.approx(3.3)
    assert Prefill(10, [(0, 2.0), (100, 1.0)]).seconds(30) == pytest.approx(3.0), "noise is no speed-up"


def test_a_cache_of_random_numbers_costs_what_a_real_one_does() -> None:
    base = tiny_base("qwen3")
    cache = filled(base, 50)
    sizes = [layer.keys.nbytes + layer.values.nbytes for layer in cache.states.layers]
    assert cache.length == 50 and sum(sizes) == 50 * slot_bytes(base)
    real = base.new_cache()
    with torch.no_grad():
        base.forward(base.embed(torch.ones(1, 50, dtype=torch.int64)), torch.arange(50)[None], cache=real)
    assert [layer.keys.shape for layer in real.states.layers] == [layer.keys.shape for layer in cache.states.layers]


def test_a_sliding_window_keeps_its_size() -> None:
    decoder = Decoder(reaching(tiny_base("llama"), 10_000), 700)
    assert len(decoder.round(5)) == 5 and len(decoder.round(3)) == 3


def test_code_is_given_out_once() -> None:
    code = Code(byte_tokenizer())
    texts = [source.text for source in code.sources(3000)] + [source.text for source in code.sources(500)]
    more = code.tokens(200)
    assert 2500 < sum(map(len, texts)) < 4500 and len(more) == 200
    again = "".join(source.text for source in Code(byte_tokenizer()).sources(10_000))
    given = "".join([*texts, byte_tokenizer().decode(more)])
    assert again.startswith(given)


def test_sizes_that_measure_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="ascending"):
        SpeedBenchConfig(histories=(8192, 4096))
    with pytest.raises(ConfigError, match="twice the budget"):
        SpeedBenchConfig(histories=(1024, 4096), budget=1024)
