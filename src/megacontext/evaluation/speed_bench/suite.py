"""The whole of ``bench speed``: two bases, each with a memory that grows, from ingest to the roofline."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megacontext.engine.bundle import Bundle
from megacontext.engine.memory import Memory
from megacontext.evaluation.reuse import TraceConfig, measure_reuse
from megacontext.evaluation.speed_bench import decode, machine, refocus
from megacontext.evaluation.speed_bench.bases import POSITIONS, bundle_of, parameters, reaching
from megacontext.evaluation.speed_bench.config import SpeedBenchConfig
from megacontext.evaluation.speed_bench.growing import Growing, Records, session_config
from megacontext.evaluation.speed_bench.reading import Prefill, prefill_seconds, slot_bytes
from megacontext.evaluation.speed_bench.summary import summary
from megacontext.storage import Repository

SCHEMA = 1
WINDOW = 16384
BUNDLED, RANDOM = "bundle", "random"
Stage = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""``(name, how many)`` → a context that gives what to call after each of them."""


def run(model: str, config: SpeedBenchConfig, stage: Stage, folder: Path | None = None) -> dict[str, Any]:
    """All records and the summary. Memories are made below ``folder`` (default: the system's for temporary files) and removed
    again. The bundle ``model`` needs a GistNet; the random base gets its tokenizer."""
    result: dict[str, Any] = {"schema": SCHEMA, "kind": "speed", "config": asdict(config), "bases": {}}
    for part in ("decode", "refocus", "ingest", "prefill", "first_token", "roofline"):
        result[part] = []
    traces: list[refocus.Trace] = []
    with tempfile.TemporaryDirectory(dir=folder, prefix="megacontext-bench-") as scratch:
        for name, random in ((BUNDLED, None), (RANDOM, config.random)):
            if name == RANDOM and random is None:
                continue
            bundle = bundle_of(model, random, config.seed)
            result["bases"][name] = {"family": bundle.base.family, "parameters": parameters(bundle.base)}
            growing = Growing(Path(scratch) / name, bundle, config)
            _measure(growing, name, model, config, stage, traces, result)
    result["summary"] = summary(result)
    return result


def _measure(
    growing: Growing,
    name: str,
    model: str,
    config: SpeedBenchConfig,
    stage: Stage,
    traces: list[refocus.Trace],
    result: dict[str, Any],
) -> None:
    bundle = growing.bundle
    histories = tuple(sorted({*config.histories, config.first_token_history}))
    with stage(f"{name}: ingest", len(histories)) as progress:
        ingested = growing.grow(histories, progress)
    with stage(f"{name}: prefill", 1) as progress:
        prefill = _prefill(bundle, config)
        progress()
    result["prefill"] += _prefill_records(name, prefill)
    rate = WINDOW / prefill.seconds(WINDOW)
    result["ingest"] += [{"base": name, **each, "over_prefill": round(each["tokens_per_s"] / rate, 3)} for each in ingested]
    with stage(f"{name}: first token", config.repeats) as progress:
        result["first_token"].append(_first_token(growing, name, prefill, config, progress))
    with stage(f"{name}: decode", config.rounds) as progress:
        decoded = decode.decoding(growing, name, config, progress)
    if config.memory:
        decode.peak_memory(growing, model, config.random if name == RANDOM else None, config, decoded)
    result["decode"] += decoded
    if not traces:
        history = config.histories[min(2, len(config.histories) - 1)]
        traces += [refocus.record(growing, history, interval, config) for interval in config.intervals]
    with stage(f"{name}: refocus", len(traces) * config.refocuses) as progress:
        for trace in traces:
            result["refocus"] += refocus.replayed(growing, name, trace, config, progress)
    if name == BUNDLED and config.reuse_items:
        with stage("reuse in nats", config.reuse_items) as progress:
            result["reuse"] = _reuse(growing, config, progress)
    result["roofline"].append(_roofline(bundle, name, decoded))


def _prefill(bundle: Bundle, config: SpeedBenchConfig) -> Prefill:
    base = reaching(bundle.base, POSITIONS)
    return Prefill(config.chunk, prefill_seconds(base, config.chunk, config.depths, config.repeats))


def _prefill_records(name: str, prefill: Prefill) -> Records:
    timed = [{"base": name, "chunk": prefill.chunk, "depth": depth, "ms": 1e3 * seconds} for depth, seconds in prefill.timed]
    seconds = prefill.seconds(WINDOW)
    return [*timed, {"base": name, "window": WINDOW, "seconds": seconds, "tokens_per_s": round(WINDOW / seconds, 2)}]


def _first_token(
    growing: Growing, name: str, prefill: Prefill, config: SpeedBenchConfig, progress: Callable[[], None]
) -> dict[str, Any]:
    """From a folder to the first token's logits, the models being loaded already."""
    history, taken = config.first_token_history, []
    for _ in range(config.repeats):
        branch = growing.branch(history)
        started = time.perf_counter()
        memory = Memory(Repository.open(growing.memory.repository.root), growing.bundle)
        with memory.session(name=branch, policy=config.policy, config=session_config(config)) as session:
            turn = session.begin_turn("")
            turn.choose(session.logits())
            taken.append(time.perf_counter() - started)
        progress()
    reached = growing.reached[history]
    return {
        "base": name,
        "history": reached,
        "seconds": round(float(np.median(taken)), 4),
        "prefill_seconds": round(prefill.seconds(reached), 3),
        "prefill_over_first_token": round(prefill.seconds(reached) / float(np.median(taken)), 2),
    }


def _reuse(growing: Growing, config: SpeedBenchConfig, progress: Callable[[], None]) -> Records:
    """What reuse costs in NLL, over windows of real code behind the memory's."""
    bundle, trace = growing.bundle, TraceConfig(far=2048, decoded=128, budget=min(512, config.budget), recent=config.recent)
    with growing.session(config.histories[0], config.policy) as session:
        policy = session.policy
    codes = [growing.code.tokens(trace.far + trace.decoded) for _ in range(config.reuse_items)]
    whole = [ids for ids in codes if len(ids) == trace.far + trace.decoded]
    options = {arm.name: arm for arm in refocus.ARMS if arm.name != refocus.Fresh.name}
    return measure_reuse(
        bundle, whole, policy, intervals=config.intervals, options=options, config=trace, timed=0, progress=progress
    )


def _roofline(bundle: Bundle, name: str, decoded: Records) -> dict[str, Any]:
    """Bytes and operations that a decode step cannot do without, what the machine does at best, and the share reached."""
    window = next(record for record in decoded if record["arm"] == "megacontext")
    sliding = next(record for record in decoded if record["arm"] == "sliding")
    base, slots = bundle.base, sliding["slots"]
    weights = parameters(base)
    embedding = base.model.get_input_embeddings().weight
    # The embedding is read whole only where it is the head too.
    tied = base.model.get_output_embeddings().weight.data_ptr() == embedding.data_ptr()
    read = weights if tied else weights - embedding.numel()
    moved = read * base.dtype.itemsize + slots * slot_bytes(base)
    operations = 2 * read + 2 * slots * slot_bytes(base) // base.dtype.itemsize
    copied, reading, multiplied = machine.copied_per_second(), machine.read_per_second(), machine.operations_per_second()
    least = max(moved / max(copied, reading), operations / multiplied)
    return {
        "base": name,
        "bytes": int(moved),
        "operations": int(operations),
        "copy_gb_per_s": round(copied / 1e9, 2),
        "read_gb_per_s": round(reading / 1e9, 2),
        "gflop_per_s": round(multiplied / 1e9, 1),
        "least_ms": round(1e3 * least, 4),
        "decode_ms": window["ms_per_token"],
        "share": round(1e3 * least / window["ms_per_token"], 4),
        "share_of_plain": round(1e3 * least / sliding["ms_per_token"], 4),
    }
