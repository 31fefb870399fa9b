"""Refocus on a recorded trace of real edits: with reuse of keys and values and without, all in, beside a sliding window.

The trace is the scores that the bundle's own policy gave, in one session over real code with the code's own next tokens. Every
arm is a session of its own that is given the same tokens and scores, so all make the same edits; a policy still runs, to cost
what it costs. The random base replays the trace of the bundled one: their memories have the same blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from megacontext.core import Expand, FocusScores
from megacontext.engine.policies import FocusPolicy, FocusView
from megacontext.engine.reuse import EXACT, NOTHING, Exact, Held, Kept, Patched, Reuse
from megacontext.evaluation.speed_bench.bases import POSITIONS, reaching
from megacontext.evaluation.speed_bench.config import SpeedBenchConfig
from megacontext.evaluation.speed_bench.content import IntArray
from megacontext.evaluation.speed_bench.decode import Decoding
from megacontext.evaluation.speed_bench.growing import Growing, Records
from megacontext.evaluation.speed_bench.machine import median_ms
from megacontext.evaluation.speed_bench.reading import Decoder


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """No reuse: whatever edits the window has it read anew. Tokens that only follow are appended, as everywhere."""

    name = "none"
    moves = False

    def keep(self, held: Held, slots: Any, positions: IntArray, passes: Any) -> Kept:
        """See ``Reuse``."""
        only_more = held.common(slots, positions) == len(held.slots)
        return Exact().keep(held, slots, positions, passes) if only_more else NOTHING


ARMS: tuple[Reuse, ...] = (EXACT, Fresh(), Patched(), Patched(again=16))


@dataclass(frozen=True, kw_only=True)
class Trace:
    """``tokens`` int64 [n] that follow the history; ``scores`` of each refocus, the first included; ``expansions`` and
    ``edits`` of the others."""

    history: int
    interval: int
    tokens: IntArray
    scores: Sequence[FocusScores]
    expansions: Sequence[int]
    edits: Sequence[int]


class Recorded:
    """Lets a policy look at the window and keeps what it said, or says what was said before."""

    def __init__(self, policy: FocusPolicy, said: Sequence[FocusScores] | None = None) -> None:
        self._policy, self._said, self.name = policy, said, policy.name
        self.scores: list[FocusScores] = []

    def score(self, view: FocusView) -> FocusScores:
        """See ``FocusPolicy.score``."""
        found = self._policy.score(view)
        self.scores.append(found if self._said is None else self._said[len(self.scores)])
        return self.scores[-1]


def record(growing: Growing, history: int, interval: int, config: SpeedBenchConfig) -> Trace:
    """What the bundle's own policy does over ``history`` and ``refocuses`` stretches of real code behind it: of several
    continuations the one with the most expansions, since a refocus without edits costs nothing."""
    traces = [_tried(growing, history, interval, config) for _ in range(config.tries)]
    return max(traces, key=lambda trace: (sum(map(bool, trace.expansions)), sum(trace.expansions)))


def _tried(growing: Growing, history: int, interval: int, config: SpeedBenchConfig) -> Trace:
    count = (config.refocuses + 1) * interval
    tokens = np.resize(growing.code.tokens(count), count)
    expansions, edits = [], []
    with growing.session(history, config.policy, interval=interval) as session:
        policy = Recorded(session.policy)
        session.policy = policy
        run = Decoding(session, tokens)
        run.round(interval)
        for _ in range(config.refocuses):
            run.round(interval)
            assert session.last_refocus is not None
            done = session.last_refocus.plan.edits
            edits.append(len(done))
            expansions.append(sum(isinstance(edit, Expand) for edit in done))
    return Trace(history=history, interval=interval, tokens=tokens, scores=policy.scores, expansions=expansions, edits=edits)


def replayed(growing: Growing, name: str, trace: Trace, config: SpeedBenchConfig, progress: Callable[[], None]) -> Records:
    """One record for every way of reusing keys and values, in turns with a sliding window of as many entries."""
    with ExitStack() as stack:
        runs: dict[str, Decoding] = {}
        for arm in ARMS:
            session = stack.enter_context(growing.session(trace.history, config.policy, interval=trace.interval, reuse=arm))
            session.policy = Recorded(session.policy, trace.scores)
            runs[arm.name] = Decoding(session, trace.tokens)
            runs[arm.name].round(trace.interval)
            runs[arm.name].forget()
        slots = int(np.median([len(run.session.next_input().slots) for run in runs.values()]))
        window = Decoder(reaching(growing.bundle.base, POSITIONS), slots)
        window.round(2)
        plain: list[float] = []
        for number in range(config.refocuses):
            for arm_name in np.roll(list(runs), number).tolist():
                runs[arm_name].round(trace.interval)
            plain.append(float(np.mean(window.round(trace.interval))))
            progress()
    sliding = median_ms(plain)
    about = {
        "base": name,
        "interval": trace.interval,
        "history": growing.reached[trace.history],
        "refocuses": config.refocuses,
        "expansions_per_refocus": float(np.mean(trace.expansions)),
        "refocuses_with_expansion": sum(map(bool, trace.expansions)),
        "edits_per_refocus": float(np.mean(trace.edits)),
        "slots": slots,
        "sliding_ms_per_token": sliding,
    }
    anew = runs[Fresh.name].profile.recomputed
    return [{**about, **_record(arm, run, sliding, anew)} for arm, run in runs.items()]


def _record(arm: str, run: Decoding, sliding: float, anew: int) -> dict[str, Any]:
    profile = run.profile
    per_token = profile.ms_per_token()
    all_in = median_ms(run.rounds)
    beside = sum(per_token[part] for part in ("lens", "allocator", "assembly", "storage"))
    return {
        "reuse": arm,
        "recomputed_per_refocus": profile.recomputed / max(1, profile.refocuses),
        "token_forwards_saving": round(anew / max(1, profile.recomputed), 3),
        "recomputation_ms_per_refocus": round(per_token["recomputation"] * profile.tokens / max(1, profile.refocuses), 3),
        "all_in_ms_per_token": all_in,
        "over_sliding_window": round(all_in / sliding, 4),
        "overhead_share": round(beside / (median_ms(run.single) or 1.0), 4),
        "profile_ms_per_token": per_token,
    }
