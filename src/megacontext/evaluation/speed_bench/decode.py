"""Decoding in turns: sessions over every history, a sliding window of equal entries, and the base that reads everything."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from megacontext.engine.policies import Recency
from megacontext.engine.profile import Profile
from megacontext.engine.session import Session
from megacontext.engine.turn import Turn
from megacontext.evaluation.speed_bench.bases import POSITIONS, reaching
from megacontext.evaluation.speed_bench.config import RandomLlama, SpeedBenchConfig
from megacontext.evaluation.speed_bench.growing import MEGA, Growing, Records
from megacontext.evaluation.speed_bench.machine import median_ms
from megacontext.evaluation.speed_bench.reading import Decoder, slot_bytes

ENDLESS = 1 << 30


@dataclass
class Decoding:
    """A session that reads given tokens one by one; seconds of those that were one slot for the base, and of all."""

    session: Session
    tokens: np.ndarray[Any, Any]
    profile: Profile = field(default_factory=Profile)
    single: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    at: int = 0

    def __post_init__(self) -> None:
        self.turn: Turn = self.session.begin_turn("", max_new_tokens=ENDLESS, stop_at_eos=False)

    def round(self, tokens: int) -> None:
        """The next ``tokens`` tokens, with the refocus that is due."""
        began = time.perf_counter()
        for _ in range(tokens):
            started, recomputed = time.perf_counter(), self.profile.recomputed
            self.profile.token(self.session, self.turn, int(self.tokens[self.at]))
            self.at += 1
            if self.profile.recomputed == recomputed:
                self.single.append(time.perf_counter() - started)
        self.rounds.append((time.perf_counter() - began) / tokens)
        self.slots.append(len(self.session.next_input().slots))

    def forget(self) -> None:
        """What was timed so far was to warm up."""
        self.profile, self.single, self.rounds, self.slots = Profile(), [], [], []


def decoding(growing: Growing, name: str, config: SpeedBenchConfig, progress: Callable[[], None]) -> Records:
    """One record for every history and arm. Sessions expand the newest blocks, so that all windows are equally full."""
    with ExitStack() as stack:
        tokens = growing.code.tokens((config.rounds + 1) * config.interval)
        sessions = {}
        for history in config.histories:
            session = stack.enter_context(growing.session(history, Recency()))
            sessions[history] = Decoding(session, np.resize(tokens, (config.rounds + 1) * config.interval))
            sessions[history].round(config.interval)
        slots = int(np.median([each.slots[-1] for each in sessions.values()]))
        base = growing.bundle.base
        far = reaching(base, POSITIONS)
        wholes = {n: Decoder(far, n) for n in config.full if n * slot_bytes(base) <= config.full_gigabytes * 1e9}
        sliding = Decoder(far, slots)
        for alone in (*wholes.values(), sliding):
            alone.round(2)
        decoders: dict[Any, Decoder] = {**wholes, "sliding": sliding}
        timed: dict[Any, list[float]] = {key: [] for key in decoders}
        for each in sessions.values():
            each.forget()
        for number in range(config.rounds):
            # Another order every round: a machine that warms up or slows down favours nobody.
            for history in np.roll(list(sessions), number).tolist():
                sessions[history].round(config.interval)
            for key, decoder in decoders.items():
                timed[key] += decoder.round(config.interval)
            progress()
    about = {"base": name, "repeats": config.rounds * config.interval}
    records = [_record(each, growing.reached[history], about) for history, each in sessions.items()]
    records.append({**about, "arm": "sliding", "slots": slots, "ms_per_token": median_ms(timed["sliding"])})
    records += [{**about, "arm": "full", "history": n, "slots": n, "ms_per_token": median_ms(timed[n])} for n in wholes]
    for record in records:
        record["cache_mb"] = round(record["slots"] * slot_bytes(base) / MEGA, 1)
    return records


def _record(each: Decoding, history: int, about: dict[str, Any]) -> dict[str, Any]:
    profile = each.profile
    refocus = (profile.seconds["lens"] + profile.seconds["allocator"]) / max(1, profile.refocuses)
    return {
        **about,
        "arm": "megacontext",
        "history": history,
        "slots": int(np.median(each.slots)),
        "ms_per_token": median_ms(each.single),
        "all_in_ms_per_token": median_ms(each.rounds),
        "refocus_ms": round(1e3 * refocus, 3),
    }


def peak_memory(growing: Growing, model: str, random: RandomLlama | None, config: SpeedBenchConfig, records: Records) -> None:
    """Adds to the records of sessions the most memory, without what files stand behind, that a process of its own held while
    it opened the memory and decoded. Nothing where the system does not tell."""
    by_history = {record["history"]: record for record in records if record["arm"] == "megacontext"}
    for history, reached in growing.reached.items():
        if reached not in by_history:
            continue
        task = {
            "folder": str(growing.memory.repository.root),
            "name": growing.branch(history),
            "model": model,
            "random": asdict(random) if random else None,
            "seed": config.seed,
            "budget": config.budget,
            "recent": config.recent,
            "interval": config.interval,
            "tokens": config.memory,
        }
        found = subprocess.run(
            [sys.executable, "-m", "megacontext.evaluation.speed_bench.peak", json.dumps(task)],
            capture_output=True,
            text=True,
            check=True,
        )
        if peak := json.loads(found.stdout)["anonymous_bytes"]:
            by_history[reached]["peak_anonymous_mb"] = round(peak / MEGA, 1)
