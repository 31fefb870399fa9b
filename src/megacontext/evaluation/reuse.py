"""What reusing keys and values across refocus costs in NLL and spares in work, over a trace of real edits.

A trace is what a session would have read: windows of fixed budget over a history, refocused by the real policy every few
tokens, each with the true tokens that follow. It is recorded once per interval and replayed by every option, so that all of
them read the same windows; what they hold in their caches is all that differs.

Shapes: r tokens of an interval, n slots of a window, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from megacontext.core import BLOCK, AllocatorConfig, EditHistory, Expand, Timeline, WorkingContext, advance_within_budget
from megacontext.engine.assemble import slots_of
from megacontext.engine.bundle import Bundle
from megacontext.engine.focus import FOCUS_DEFAULTS, refocus
from megacontext.engine.kv_cache import WindowCache
from megacontext.engine.policies import FocusPolicy, FocusView
from megacontext.engine.reader import ArrayReader
from megacontext.engine.reuse import EXACT, Alone, Patched, Reuse
from megacontext.errors import ConfigError
from megacontext.evaluation.arms import QUERY, reader_over
from megacontext.evaluation.bootstrap import group_weights
from megacontext.evaluation.bootstrap import interval as percentiles
from megacontext.evaluation.gists import blocks_of, encode_blocks
from megacontext.evaluation.items import IntArray
from megacontext.evaluation.scoring import Chunk, FloatArray
from megacontext.models.positions import PositionStrategy, window_ranks

INTERVALS = (8, 16, 32, 64, 128)
OPTIONS: Mapping[str, Reuse] = {
    option.name: option for option in (EXACT, Alone(), Patched(), Patched(again=16), Patched(turn=False))
}
"""Exact reuse is what the others are compared with; ``unturned`` is the control of ``patched``. What ``alone`` costs is the
price of its reading, since it keeps nothing but what that reading gives."""


@dataclass(frozen=True, kw_only=True)
class TraceConfig:
    """``far`` tokens of history, then ``decoded`` ones, read in windows of ``budget`` with ``recent`` raw tokens."""

    far: int = 3968
    decoded: int = 256
    budget: int = 640
    recent: int = 128
    allocator: AllocatorConfig = FOCUS_DEFAULTS

    def __post_init__(self) -> None:
        if self.far % BLOCK or self.decoded < 1 or self.recent + self.allocator.reserve >= self.budget:
            raise ConfigError("a trace needs whole blocks of history, tokens to decode, and a budget for its raw tail")


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The windows of one history, in order, and what followed each; ``expansions`` and ``edits`` of all refocuses but the
    first, and the ``seconds`` that scoring, planning and assembly took in them."""

    chunks: Sequence[Chunk]
    expansions: int
    edits: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Replay:
    """NLL float64 [tokens] of a trace, and what it took: slots through the base, of which ``again`` at refocuses (the tokens
    that are decoded are not among them) after the first one."""

    nll: FloatArray
    forwarded: int
    again: int
    refocuses: int


def record(ids: IntArray, reader: ArrayReader, policy: FocusPolicy, interval: int, config: TraceConfig) -> Trace:
    """The trace of ``ids`` int64 [far + decoded], whose blocks ``reader`` has with gists; a refocus every ``interval`` tokens.

    Begins with LOD1 gists of all that is not raw.
    """
    window = _start(int(reader.gists[1].shape[1]), config)
    history, chunks, expansions, edits, seconds = EditHistory(), [], 0, 0, 0.0
    for seen in range(config.far, config.far + config.decoded, interval):
        started = time.perf_counter()
        window, _ = advance_within_budget(window, window.timeline.extend(seen // BLOCK, seen % BLOCK))
        view = FocusView(window=window, reader=reader, query=ids[seen - QUERY : seen], step=history.step)
        step = refocus(view, policy, config.allocator, history, unlimited=seen == config.far)
        window, history = step.after, step.history
        context = slots_of(window, reader, ids[seen // BLOCK * BLOCK : seen], gists=True)
        if seen > config.far:
            seconds += time.perf_counter() - started
            edits += len(step.plan.edits)
            expansions += sum(isinstance(edit, Expand) for edit in step.plan.edits)
        following = ids[seen : min(seen + interval, config.far + config.decoded)]
        chunks.append(Chunk(context=context, following=following, start=seen))
    return Trace(chunks=chunks, expansions=expansions, edits=edits, seconds=seconds)


def replay(trace: Trace, cache: WindowCache) -> Replay:
    """Read every window of ``trace`` with what ``cache`` keeps of the one before it, the true tokens behind it."""
    nll, again = [], 0
    for number, chunk in enumerate(trace.chunks):
        step = cache.plan(chunk.context)
        # The newest token of the context was decoded before and is due anyway.
        again += len(step) - 1 if number else 0
        logits = cache.forward(step)
        if len(chunk.following) > 1:
            more = cache.plan(chunk.context.then(chunk.following[:-1], chunk.start, -1))
            logits = torch.cat([logits, cache.forward(more, last=len(chunk.following) - 1)])
        targets = torch.from_numpy(chunk.following).to(logits.device)
        nll.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().cpu().numpy())
    forwarded, refocuses = cache.stats.forwarded, len(trace.chunks) - 1
    return Replay(nll=np.concatenate(nll), forwarded=forwarded, again=again, refocuses=refocuses)


def decode(trace: Trace, cache: WindowCache) -> tuple[FloatArray, FloatArray]:
    """Read ``trace`` token by token, as a session does: seconds of the passes right behind a refocus, the first left out, and
    of the passes of single tokens between them, float64 each."""
    behind, single = [], []
    for number, chunk in enumerate(trace.chunks):
        for at in range(len(chunk.following)):
            slots = chunk.context.then(chunk.following[:at], chunk.start, -1)
            started = time.perf_counter()
            cache.read(slots)
            took = time.perf_counter() - started
            if at:
                single.append(took)
            elif number:
                behind.append(took)
    return np.array(behind), np.array(single)


def prefilled(trace: Trace, cache: WindowCache) -> int:
    """Slots through the base if every window after the first were read from nothing, without the tokens decoded since."""
    return sum(int(cache.passes(chunk.context).sum()) - 1 for chunk in trace.chunks[1:])


def measure_reuse(
    bundle: Bundle,
    histories: Sequence[IntArray],
    policy: FocusPolicy,
    *,
    intervals: Sequence[int] = INTERVALS,
    options: Mapping[str, Reuse] = OPTIONS,
    config: TraceConfig | None = None,
    strategy: PositionStrategy | None = None,
    timed: int = 1,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """One record per interval and option: NLL, its difference from exact reuse at the same interval with a 95 % interval
    (paired, resampled by history), token-forwards per refocus and per token; and, of the first ``timed`` histories, times.

    ``histories`` int64 [≥ far + decoded] each. ``progress`` is called after each history at each interval.
    """
    if bundle.gists is None:
        raise ConfigError(f"{bundle.name} has no GistNet: there is nothing to refocus")
    chosen = config or TraceConfig()
    if "exact" not in options or any(len(history) < chosen.far + chosen.decoded for history in histories):
        raise ConfigError(
            f"reuse is measured against exact reuse, on histories of {chosen.far + chosen.decoded} tokens or more"
        )
    readers = [_reader(history[: chosen.far + chosen.decoded], bundle) for history in histories]
    where = strategy or window_ranks(bundle.gists)
    caches = {name: partial(WindowCache, bundle.base, bundle.gists, where, reuse=option) for name, option in options.items()}
    records = []
    for interval in intervals:
        found: dict[str, list[Replay]] = {name: [] for name in options}
        spent: dict[str, list[tuple[FloatArray, FloatArray]]] = {name: [] for name in options}
        traces = []
        for number, (ids, reader) in enumerate(zip(histories, readers, strict=True)):
            traces.append(record(ids, reader, policy, interval, chosen))
            # Another order for every history: a machine that warms up or slows down favours nobody.
            for name in np.roll(list(options), number).tolist():
                found[name].append(replay(traces[-1], caches[name]()))
                if number < timed:
                    spent[name].append(decode(traces[-1], caches[name]()))
            progress()
        full = sum(prefilled(trace, caches["exact"]()) for trace in traces)
        for name in options:
            made = _record(name, interval, found, traces, full, seed)
            records.append(made | (_times(interval, spent[name], traces[:timed]) if timed else {}))
    return records


def _times(interval: int, spent: Sequence[tuple[FloatArray, FloatArray]], traces: Sequence[Trace]) -> dict[str, Any]:
    """Milliseconds, medians; and all of it per token over a window of as many entries that is never refocused."""
    behind, single = (np.concatenate(part) for part in zip(*spent, strict=True))
    if not len(behind):
        return {}
    focus = sum(trace.seconds for trace in traces) / len(behind)
    step, refocus_pass = float(np.median(single)), float(np.median(behind))
    return {
        "decode_ms": 1000 * step,
        "refocus_pass_ms": 1000 * refocus_pass,
        "focus_ms": 1000 * focus,
        "total_over_plain": 1 + (refocus_pass - step + focus) / (interval * step),
        "passes_over_plain": 1 + (refocus_pass - step) / (interval * step),
    }


def _record(
    name: str, interval: int, found: Mapping[str, Sequence[Replay]], traces: Sequence[Trace], full: int, seed: int
) -> dict[str, Any]:
    replays, exact = found[name], found["exact"]
    refocuses = max(1, sum(each.refocuses for each in replays))
    again = sum(each.again for each in replays)
    tokens = sum(len(each.nll) for each in replays)
    differences = np.array([float((mine.nll - fresh.nll).mean()) for mine, fresh in zip(replays, exact, strict=True)])
    weights = group_weights(np.arange(len(differences)), seed)
    return {
        "option": name,
        "interval": interval,
        "nll": float(np.mean([each.nll.mean() for each in replays])),
        "nll_difference": float(differences.mean()),
        "nll_difference_ci": percentiles(weights @ differences / weights.sum(axis=1)),
        "expansions_per_refocus": sum(trace.expansions for trace in traces) / refocuses,
        "edits_per_refocus": sum(trace.edits for trace in traces) / refocuses,
        "slots": float(np.mean([len(chunk.context) for trace in traces for chunk in trace.chunks])),
        "token_forwards_per_refocus": again / refocuses,
        "prefill_per_refocus": full / refocuses,
        "token_forwards_saving": full / max(1, again),
        "token_forwards_per_token": (sum(each.again for each in replays) + tokens) / tokens,
    }


def _start(vectors: int, config: TraceConfig) -> WorkingContext:
    blocks, tail = config.far // BLOCK, config.recent // BLOCK
    return WorkingContext(
        timeline=Timeline(blocks=blocks),
        lod=np.concatenate([np.ones(blocks - tail), np.zeros(tail)]).astype(np.int8),
        index=np.arange(blocks),
        budget=config.budget,
        recent=config.recent,
        vectors=vectors,
    )


def _reader(ids: IntArray, bundle: Bundle) -> ArrayReader:
    """The history's blocks with gists of every level that a window over it may show."""
    assert bundle.gists is not None
    gists = {1: encode_blocks(blocks_of(ids), bundle.base, bundle.gists)}
    while len(gists[max(gists)]) >= BLOCK:
        lod, below = max(gists) + 1, gists[max(gists)]
        count = len(below) // BLOCK
        children = torch.from_numpy(below[: count * BLOCK].astype(np.float32)).reshape(count, -1, below.shape[-1])
        mask = torch.ones(children.shape[:2], dtype=torch.bool)
        gists[lod] = bundle.gists.encode_canonical(children, mask, lod).numpy()
    return reader_over(ids, gists)
