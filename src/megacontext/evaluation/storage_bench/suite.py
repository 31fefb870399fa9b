"""The whole of ``bench storage``: a memory and a plain file side by side, from writing to comparing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megacontext.evaluation.storage_bench import reading, writing
from megacontext.evaluation.storage_bench.config import StorageBenchConfig
from megacontext.evaluation.storage_bench.content import Content
from megacontext.evaluation.storage_bench.plain import PlainFile
from megacontext.storage import LayerSpec, Repository

SCHEMA = 1
Stage = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""``(name, how many)`` → a context that gives what to call after each of them."""
Records = list[dict[str, Any]]


def run(config: StorageBenchConfig, stage: Stage, folder: Path | None = None) -> dict[str, Any]:
    """All records and the summary. The memory and the plain file are made below ``folder`` (default: the system's folder
    for temporary files) and removed again; they take about three times the raw bytes."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="megacontext-bench-") as name:
        records = _measure(config, stage, Path(name))
    return {
        "schema": SCHEMA,
        "kind": "storage",
        "config": asdict(config),
        "records": records,
        "summary": summary(records, config.blocks),
    }


def _measure(config: StorageBenchConfig, stage: Stage, folder: Path) -> Records:
    spec = LayerSpec(fingerprint="bench", vectors=config.vectors, width=config.width)
    repository = Repository.create(folder / "memory")
    plain = PlainFile(folder / "plain", config.blocks, spec.shape)
    content = Content(spec, config.seed)
    records: Records = []
    with stage("writing both", -(-config.blocks // config.batch_blocks)) as progress:
        records += writing.ingest(repository, plain, content, config, progress)
    records += reading.sizes(repository, plain, config)
    with stage("reading warm", 4 * config.reads) as progress:
        records += reading.warm(repository, plain, config, progress)
    with stage("reading for the first time", 4 * config.cold_reads) as progress:
        records += reading.unverified(repository, plain, config, progress)
    with stage("opening", config.opens) as progress:
        records += reading.opening(repository, plain, config, progress)
    with stage("appending durably", 2 * config.appends) as progress:
        records += writing.appends(repository, folder, content, config, progress)
    with stage("branching", config.branches) as progress:
        records += writing.branching(repository, folder, config, progress)
    records += writing.one_percent_changed(repository, plain, spec, config, stage)
    plain.close()
    return records


def summary(records: Records, blocks: int) -> dict[str, float]:
    """The figures of BENCHMARKS §4. Of several records that a figure could be read from, the worst."""

    def worst(what: str, key: str, **about: Any) -> float:
        found = [each for each in records if each["what"] == what and all(each.get(k) == v for k, v in about.items())]
        return float(max(each[key] if key in each else each["memory"][key] for each in found))

    return {
        "scattered_warm_ratio": worst("scattered read", "ratio", state="warm", column="gists"),
        "contiguous_warm_ratio": worst("contiguous read", "ratio", state="warm", column="gists"),
        "durable_append_ratio": worst("durable append", "ratio"),
        "open_ms": worst("open", "p50_ms", blocks=blocks),
        "size_ratio": worst("size", "ratio"),
        "branch_ms": worst("branch", "p50_ms"),
    }
