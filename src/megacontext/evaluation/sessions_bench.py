"""How fast many sessions are served on one device, beside the same sessions one after the other.

Each count of sessions is measured on windows of the same budget over one memory: *together*, all of them in a scheduler, and
*in turn*, the control, each by its own ``generate``. Prompts are cut from the memory's own text at different places, so
windows and focus differ. Both arms are to say the same, and how often they do is recorded.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from megacontext.engine.memory import Memory
from megacontext.engine.session import Session
from megacontext.errors import ConfigError

PREFIX = "bench-"


@dataclass(frozen=True, kw_only=True)
class SessionsBenchConfig:
    """``counts`` of sessions, each with ``budget`` entries (None: a session's default) and a prompt of ``prompt`` tokens; each
    decodes ``tokens`` tokens, ``repeats`` times, the arms taking turns."""

    counts: tuple[int, ...] = (1, 4, 16)
    tokens: int = 48
    prompt: int = 96
    budget: int | None = None
    repeats: int = 3

    def __post_init__(self) -> None:
        if min(self.tokens, self.prompt, self.repeats, *self.counts, len(self.counts)) < 1:
            raise ConfigError("counts, tokens, prompt and repeats of a measurement are at least 1")


@dataclass(frozen=True)
class _Run:
    seconds: float
    first: float
    texts: tuple[str, ...]


def measure_sessions(
    memory: Memory, config: SessionsBenchConfig | None = None, *, progress: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """A record for each count and arm: medians of tokens per second over all sessions (with the lowest and the highest of the
    repeats), of milliseconds per token of one session, and of milliseconds until the last session had its first token.

    ``same_text`` is the share of sessions whose text is the same in both arms (the rest: ties). ``memory`` must hold some text;
    its branches are as before afterwards. ``progress`` is called after each of counts x repeats x 2 runs.
    """
    config = config or SessionsBenchConfig()
    prompts = _prompts(memory, max(config.counts), config.prompt)
    _in_turn(memory, prompts[:1], config)  # warm
    records = []
    for count in config.counts:
        runs: dict[str, list[_Run]] = {"together": [], "in turn": []}
        for _ in range(config.repeats):
            for arm, measure in (("together", _together), ("in turn", _in_turn)):
                runs[arm].append(measure(memory, prompts[:count], config))
                progress()
        records += [_record(arm, count, runs, config) for arm in runs]
    return records


def _record(arm: str, count: int, runs: dict[str, list[_Run]], config: SessionsBenchConfig) -> dict[str, Any]:
    total = count * config.tokens
    rates = [total / run.seconds for run in runs[arm]]
    pairs = [
        mine == other
        for a, b in zip(runs["together"], runs["in turn"], strict=True)
        for mine, other in zip(a.texts, b.texts, strict=True)
    ]
    return {
        "sessions": count,
        "arm": arm,
        "tokens": total,
        "tokens_per_s": round(statistics.median(rates), 2),
        "lowest": round(min(rates), 2),
        "highest": round(max(rates), 2),
        "ms_per_token": round(1000 * count / statistics.median(rates), 3),
        "first_ms": round(1000 * statistics.median(run.first for run in runs[arm]), 1),
        "same_text": round(sum(pairs) / len(pairs), 4),
    }


def _together(memory: Memory, prompts: list[str], config: SessionsBenchConfig) -> _Run:
    with ExitStack() as stack:
        sessions = _sessions(memory, len(prompts), config, stack)
        slots = max(session.config.budget for session in sessions)
        scheduler = memory.scheduler(rows=len(prompts), slots=slots)
        started = time.perf_counter()
        requests = [
            scheduler.submit(session, prompt, max_new_tokens=config.tokens, stop_at_eos=False)
            for session, prompt in zip(sessions, prompts, strict=True)
        ]
        first = 0.0
        while scheduler.step():
            if not first and all(request.tokens for request in requests):
                first = time.perf_counter() - started
        seconds = time.perf_counter() - started
        scheduler.close()
        return _Run(seconds, first or seconds, tuple(request.result().text for request in requests))


def _in_turn(memory: Memory, prompts: list[str], config: SessionsBenchConfig) -> _Run:
    with ExitStack() as stack:
        sessions = _sessions(memory, len(prompts), config, stack)
        started, first, texts = time.perf_counter(), 0.0, []
        for session, prompt in zip(sessions, prompts, strict=True):
            pieces = session.generate(prompt, max_new_tokens=config.tokens, stop_at_eos=False)
            texts.append(next(pieces, ""))
            first = time.perf_counter() - started
            texts[-1] += "".join(pieces)
        return _Run(time.perf_counter() - started, first, tuple(texts))


def _sessions(memory: Memory, count: int, config: SessionsBenchConfig, stack: ExitStack) -> list[Session]:
    """Open sessions whose branches go away with ``stack``."""

    def opened() -> Iterator[Session]:
        for number in range(count):
            session = memory.session(budget=config.budget, name=f"{PREFIX}{number}")
            stack.callback(memory.drop_session, session.branch)
            yield stack.enter_context(session)

    return list(opened())


def _prompts(memory: Memory, count: int, tokens: int) -> list[str]:
    """Text at ``count`` places that lie evenly over the memory."""
    view, blocks = memory.snapshot(), -(-tokens // 32)
    if view.blocks < blocks + 1:
        raise ConfigError(
            f"prompts of {tokens} tokens are cut from the memory's text, and it holds less: add more, or ask for fewer"
        )
    step = (view.blocks - blocks) / count
    return [memory.text_of_blocks(view, int(number * step), int(number * step) + blocks) for number in range(count)]
