"""``bench storage`` on a small memory: both sides hold the same, every figure comes from a record, nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megacontext.errors import ConfigError
from megacontext.evaluation.storage_bench import StorageBenchConfig, run
from megacontext.evaluation.storage_bench.content import Content
from megacontext.evaluation.storage_bench.plain import PlainFile
from megacontext.evaluation.storage_bench.suite import summary
from megacontext.evaluation.storage_bench.tables import COLUMNS, summary_rows, table_rows
from megacontext.evaluation.storage_bench.timing import Stopwatch, compared, in_turns
from megacontext.storage import LayerSpec
from megacontext.storage.gists import nodes

SMALL: dict[str, Any] = {
    **{"blocks": 9000, "width": 4, "document_blocks": 60, "batch_blocks": 3000, "commit_blocks": 4000},
    **{"appends": 3, "reads": 3, "cold_reads": 2, "opens": 2, "branches": 2},
}
SPEC = LayerSpec(fingerprint="bench", vectors=2, width=3)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, list[int]], list[Path]]:
    """A result, the stages that were announced with what was counted, and what is left of the files."""
    folder = tmp_path_factory.mktemp("bench")
    stages: dict[str, list[int]] = {}

    @contextmanager
    def stage(name: str, total: int) -> Iterator[Callable[[], None]]:
        stages[name] = [total, 0]

        def count() -> None:
            stages[name][1] += 1

        yield count

    return run(StorageBenchConfig(**SMALL), stage, folder), stages, list(folder.iterdir())


def test_a_result_has_the_form_of_the_benchmark_page(measured: tuple[dict[str, Any], Any, Any]) -> None:
    result = measured[0]
    assert (result["kind"], result["schema"], result["config"]["blocks"]) == ("storage", 1, 9000)
    names = ("scattered_warm_ratio", "contiguous_warm_ratio", "durable_append_ratio", "open_ms", "size_ratio", "branch_ms")
    assert list(result["summary"]) == list(names)
    assert all(figure > 0 for figure in result["summary"].values())
    kinds = [record["what"] for record in result["records"]]
    assert set(kinds) >= {
        "bulk ingest",
        "size",
        "scattered read",
        "contiguous read",
        "open",
        "durable append",
        "branch",
        "diff",
    }
    assert [r["blocks"] for r in result["records"] if r["what"] == "durable append"] == [1, 32]
    states = {(r["what"], r["state"]) for r in result["records"] if "state" in r}
    assert states == {(what, state) for what in ("scattered read", "contiguous read") for state in ("warm", "first", "cold")}


def test_ratios_are_those_of_the_medians_and_the_summary_takes_the_worst(measured: tuple[dict[str, Any], Any, Any]) -> None:
    records = measured[0]["records"]
    timed = [r for r in records if "plain" in r and "p50_ms" in r["plain"]]
    assert len(timed) > 10
    for record in timed:
        # Both medians are rounded.
        assert record["ratio"] == pytest.approx(record["memory"]["p50_ms"] / record["plain"]["p50_ms"], rel=1e-2, abs=1e-3)
        for side in ("memory", "plain"):
            assert record[side]["min_ms"] <= record[side]["p50_ms"] <= record[side]["p99_ms"]
    appends = [r["ratio"] for r in records if r["what"] == "durable append"]
    assert summary(records, 9000)["durable_append_ratio"] == max(appends)


def test_one_document_in_a_hundred_changed(measured: tuple[dict[str, Any], Any, Any]) -> None:
    (diff,) = (record for record in measured[0]["records"] if record["what"] == "diff")
    assert diff["changed"] == -(-diff["documents"] // 100) == 2


def test_progress_counts_what_it_announces_and_nothing_is_left(measured: tuple[Any, dict[str, list[int]], list[Path]]) -> None:
    _, stages, left = measured
    assert len(stages) >= 7 and all(total == done for total, done in stages.values()), stages
    assert left == []


def test_every_timed_record_is_a_row(measured: tuple[dict[str, Any], Any, Any]) -> None:
    result = measured[0]
    rows = table_rows(result)
    assert len(rows) == len(result["records"]) - 1 and {len(row) for row in rows} == {len(COLUMNS)}
    assert len({row[0] for row in rows}) == len(rows)
    missed = {**result, "summary": {**result["summary"], "open_ms": 99.0, "branch_ms": 1.0}}
    verdicts = {label: verdict for label, _, _, verdict in summary_rows(missed)}
    assert verdicts["opening"] == "**missed**" and verdicts["creating a branch"] == "met"


def test_content_is_the_same_for_a_seed_and_never_repeats() -> None:
    whole, pieces = Content(SPEC, 3), Content(SPEC, 3)
    batch = whole.batch(70)
    assert sorted(batch.gists) == [1, 2] and batch.gists[2][1].shape == (nodes(70, 2), 2, 3)
    again = pieces.batch(70)
    np.testing.assert_array_equal(batch.ids, again.ids)
    assert np.isfinite(batch.gists[1][1]).all() and len(np.unique(batch.gists[1][1])) > 300
    later = pieces.batch(70)
    assert later.gists[1][0] == 70 and not np.array_equal(later.chars, again.chars)


def test_the_plain_file_holds_the_same_rows(tmp_path: Path) -> None:
    content = Content(SPEC, 0)
    plain = PlainFile(tmp_path / "plain", 1100, SPEC.shape)
    batches = list(content.batches(1100, 300))
    for batch in batches:
        plain.write(batch)
    plain.sync()
    columns = plain.open(scattered=True)
    for name in ("ids", "lod1", "lod2", "lod3", "chars"):
        written = [batch.columns()[name] for batch in batches if name in batch.columns()]
        np.testing.assert_array_equal(columns[name], np.concatenate(written))
    assert plain.nbytes == sum(batch.nbytes for batch in batches)
    plain.close()


def test_ways_take_turns() -> None:
    order: list[str] = []
    taken = in_turns([lambda: lambda: order.append("a"), lambda: lambda: order.append("b")], 4, lambda: None)
    assert order == list("abbaabba") and [len(each) for each in taken] == [4, 4]


def test_a_ratio_follows_the_slower_side() -> None:
    def watch(seconds: float) -> Stopwatch:
        made = Stopwatch()
        made.seconds = seconds
        return made

    record = compared("x", [watch(t) for t in (0.3, 0.2, 9.0)], [watch(t) for t in (0.1, 0.1, 0.2)])
    assert record["ratio"] == 3.0 and record["memory"]["p50_ms"] == 300.0


@pytest.mark.parametrize("wrong", [{"blocks": 8191}, {"reads": 0}, {"document_blocks": 1000}])
def test_what_cannot_be_measured_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        StorageBenchConfig(**{**SMALL, **wrong})
