"""One memory that grows through all histories: what ingest takes on the way, and sessions at each length."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from megacontext.engine.bundle import Bundle
from megacontext.engine.ingest import ingest
from megacontext.engine.memory import SESSIONS, Memory
from megacontext.engine.policies import FocusPolicy
from megacontext.engine.reuse import EXACT, Reuse
from megacontext.engine.session import Session, SessionConfig
from megacontext.evaluation.speed_bench.config import SpeedBenchConfig
from megacontext.evaluation.speed_bench.content import Code
from megacontext.evaluation.speed_bench.machine import anonymous_bytes

Records = list[dict[str, Any]]
MEGA = 1_000_000


class Growing:
    """A memory below ``folder`` for ``bundle``; ``reached``: history → the tokens that it really has."""

    def __init__(self, folder: Path, bundle: Bundle, config: SpeedBenchConfig) -> None:
        self.bundle, self._config = bundle, config
        self.memory = Memory.create(folder, bundle=bundle)
        self.code = Code(bundle.tokenizer)
        self.reached: dict[int, int] = {}
        self._names = (f"bench-{number}" for number in count())

    def grow(self, histories: tuple[int, ...], progress: Callable[[], None]) -> Records:
        """Ingests real code up to each history in turn: one record a stretch, and a branch to start sessions from."""
        records: Records = []
        for history in histories:
            before = self.memory.status().tokens
            started, computing = time.perf_counter(), time.process_time()
            receipt = ingest(
                self.memory.repository, self.bundle.base, self.bundle.gists, self.code.sources(max(1, history - before))
            )
            seconds, computed = time.perf_counter() - started, time.process_time() - computing
            self.reached[history] = before + receipt.tokens
            self.memory.branch(_mark(history))
            held = anonymous_bytes()
            records.append(
                {
                    "history": before + receipt.tokens,
                    "tokens": receipt.tokens,
                    "seconds": round(seconds, 3),
                    "tokens_per_s": round(receipt.tokens / seconds, 1),
                    "computing_tokens_per_s": round(receipt.tokens / max(computed, 1e-9), 1),
                    **({} if held is None else {"anonymous_mb": round(held / MEGA, 1)}),
                }
            )
            progress()
        return records

    def branch(self, history: int) -> str:
        """A branch of its own for a session over ``history``; the name to give to ``Memory.session``."""
        name = next(self._names)
        self.memory.repository.create_branch(SESSIONS + name, _mark(history))
        return name

    def session(self, history: int, policy: FocusPolicy | Any, *, interval: int | None = None, reuse: Reuse = EXACT) -> Session:
        """A session over ``history`` whose window is refocused every ``interval`` tokens."""
        return self.memory.session(
            name=self.branch(history), policy=policy, config=session_config(self._config, interval, reuse)
        )


def session_config(config: SpeedBenchConfig, interval: int | None = None, reuse: Reuse = EXACT) -> SessionConfig:
    """The window of ``config``."""
    return SessionConfig(budget=config.budget, recent=config.recent, refocus_every=interval or config.interval, reuse=reuse)


def _mark(history: int) -> str:
    return f"history-{history}"
