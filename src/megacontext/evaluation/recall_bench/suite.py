"""The whole of ``bench recall``: from held-out histories and a bundle to one JSON-ready result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext.engine.bundle import Bundle
from megacontext.engine.memory import Memory
from megacontext.engine.policies.table import POLICIES
from megacontext.errors import ConfigError
from megacontext.evaluation.bootstrap import interval
from megacontext.evaluation.recall_bench.answers import Answer, ask_base, ask_memory, context_of
from megacontext.evaluation.recall_bench.haystack import NEWEST, documents, memory_of, planted, texts_of
from megacontext.evaluation.recall_bench.tasks import TASKS, Case, draw_cases

SCHEMA = 1
NONE = "none"
"""The arm without a memory: the base behind the newest tokens alone."""
JUDGED = 0.8
"""Share that the base has to get right when it reads everything raw."""
TOKENS_A_LINE = 150
"""Most told lines: one in so many tokens of history."""
MARGIN = 128
"""Tokens that needles, question and answer take where everything is read raw."""
Stage = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""``(name, how many)`` → a context that gives what to call after each of them."""
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RecallConfig:
    """``cases`` of each task; ``lengths`` of history in tokens, each read through the first of ``windows``, and the one of
    ``narrow`` tokens through the others too. ``raw``: tokens around the needles where the base reads all of it, or what it can.

    Tasks that the base cannot do raw are asked of the memory only with ``everything``.
    """

    cases: int = 24
    lengths: tuple[int, ...] = (4096, 16_384, 65_536, 262_144, 1_048_576)
    windows: tuple[int, ...] = (1024, 512, 256)
    narrow: int = 65_536
    policies: tuple[str, ...] = ("hybrid", "lens", "suffix", "recency")
    tasks: tuple[str, ...] = tuple(TASKS)
    raw: int = 896
    everything: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            raise ConfigError(f"no task named {', '.join(unknown)}: one of {', '.join(TASKS)}")
        if unknown := sorted(set(self.policies) - set(POLICIES)):
            raise ConfigError(f"no focus policy {', '.join(unknown)}: choose {', '.join(POLICIES)}")
        if min(self.cases, self.raw, *self.windows) < 1 or min(self.lengths) < 2 * NEWEST:
            raise ConfigError(f"cases and windows must be positive, and a history at least {2 * NEWEST} tokens long")


def run(
    bundle: Bundle, histories: Sequence[npt.NDArray[np.int64]], closed_by: int | None, config: RecallConfig, stage: Stage
) -> Record:
    """Every task at every length, window and policy; ``histories`` int64 ids, whose documents ``closed_by`` ends."""
    texts = texts_of(histories, closed_by, bundle.tokenizer)
    config = replace(config, policies=tuple(name for name in config.policies if bundle.lens or name not in ("hybrid", "lens")))
    cases = {task: draw_cases(task, config.cases, bundle.tokenizer, config.seed) for task in config.tasks}
    raw = _raw(bundle, texts, cases, config, stage)
    judged = {task: found["exact"] >= JUDGED for task, found in raw.items()}
    asked = {task: cases[task] for task in config.tasks if judged[task] or config.everything}
    records = []
    for length in config.lengths if asked else ():
        windows = config.windows if length == config.narrow else config.windows[:1]
        for record in _at_length(bundle, texts, asked, length, windows, config, stage):
            own = raw[record["task"]]
            records.append({**record, "raw_exact": own["exact"], "judged": judged[record["task"]]})
    not_asked = [
        {"task": task, "arm": "raw", "history": config.raw, "window": config.raw, **raw[task], "judged": judged[task]}
        for task in config.tasks
    ]
    return {
        "schema": SCHEMA,
        "kind": "recall",
        "config": {**asdict(config), "base": bundle.base.fingerprint, **_parts(bundle)},
        "raw": not_asked,
        "tasks": records,
        "summary": summary(records, config),
    }


def _parts(bundle: Bundle) -> Record:
    return {
        "gistnet": bundle.gists.fingerprint if bundle.gists is not None else None,
        "lensnet": bundle.lens.fingerprint if bundle.lens is not None else None,
    }


def _raw(
    bundle: Bundle, texts: Sequence[str], cases: Mapping[str, Sequence[Case]], config: RecallConfig, stage: Stage
) -> dict[str, Record]:
    """What the base does when it reads everything, and what it guesses behind the newest tokens alone."""
    found = {}
    size = min(config.raw, bundle.base.context_length - 2 * MARGIN)
    with stage("read raw", sum(map(len, cases.values()))) as advance:
        for task, own in cases.items():
            answers: dict[str, list[Answer]] = {"raw": [], NONE: []}
            for number, case in enumerate(own):
                rng = np.random.default_rng((config.seed, 0x4A3, number, list(TASKS).index(task)))
                some = documents(texts, size, bundle.tokenizer, rng)
                whole = planted(some, [case], rng, newest=sum(map(len, some)) // 7)
                context = context_of(whole, bundle.tokenizer, bundle.base.context_length - MARGIN)
                answers["raw"].append(ask_base(bundle.base, context, case))
                answers[NONE].append(ask_base(bundle.base, context_of(some, bundle.tokenizer, MARGIN), case))
                advance()
            alone = _figures(answers[NONE])
            found[task] = {**_figures(answers["raw"]), "none_exact": alone["exact"], "none_rank": alone["rank"]}
    return found


def _at_length(
    bundle: Bundle,
    texts: Sequence[str],
    cases: Mapping[str, Sequence[Case]],
    length: int,
    windows: Sequence[int],
    config: RecallConfig,
    stage: Stage,
) -> list[Record]:
    """All windows and policies on one length: as many histories as it takes to hold all needles thinly."""
    arms = [(window, policy) for window in windows for policy in config.policies]
    answers: dict[tuple[str, int, str], list[Answer]] = {}
    names = count()
    groups = grouped(cases, length)
    with stage(f"{length:,} tokens", sum(len(own) for group in groups for own in group.values()) * len(arms)) as advance:
        for number, group in enumerate(groups):
            rng = np.random.default_rng((config.seed, length, number))
            some = documents(texts, length, bundle.tokenizer, rng)
            whole = planted(
                some, [case for own in group.values() for case in own], rng, newest=sum(map(len, some)) * NEWEST // length
            )
            with memory_of(whole, bundle) as memory:
                for task, own in group.items():
                    for case in own:
                        for window, policy in arms:
                            answer = _asked(memory, case, window, policy, f"case-{next(names)}")
                            answers.setdefault((task, window, policy), []).append(answer)
                            advance()
    return [
        {"task": task, "history": length, "window": window, "arm": policy, **_figures(found)}
        for (task, window, policy), found in answers.items()
    ]


def _asked(memory: Memory, case: Case, window: int, policy: str, name: str) -> Answer:
    return ask_memory(memory, case, budget=min(window, memory.bundle.base.context_length), policy=policy, name=name)


def grouped(cases: Mapping[str, Sequence[Case]], length: int) -> list[dict[str, list[Case]]]:
    """Cases dealt out to as few histories of ``length`` tokens as hold their told lines at one in ``TOKENS_A_LINE``."""
    lines = sum(len(case.told) for own in cases.values() for case in own)
    number = max(1, -(-lines * TOKENS_A_LINE // length))
    groups = [{task: list(own[at::number]) for task, own in cases.items()} for at in range(number)]
    return [{task: own for task, own in group.items() if own} for group in groups if any(group.values())]


def _figures(answers: Sequence[Answer]) -> Record:
    exact = np.array([answer.exact for answer in answers], np.float64)
    drawn = np.random.default_rng(0).integers(0, len(exact), (2000, len(exact)))
    return {
        "cases": len(answers),
        "exact": float(exact.mean()),
        "exact_ci": list(interval(exact[drawn].mean(axis=1))),
        "rank": float(np.mean([answer.rank for answer in answers])),
        "seconds": float(np.median([answer.seconds for answer in answers])),
    }


def summary(records: Sequence[Record], config: RecallConfig) -> Record:
    """Per task and policy through the first window: the share of the raw accuracy at the longest history, and flatness.

    ``flat``: the lowest exact match from 64k tokens on over the highest.
    """
    result: Record = {}
    for task in dict.fromkeys(record["task"] for record in records if record["judged"]):
        for policy in config.policies:
            own = [r for r in records if (r["task"], r["arm"], r["window"]) == (task, policy, config.windows[0])]
            far = [r["exact"] for r in own if r["history"] >= 65_536]
            longest = max(own, key=lambda r: int(r["history"]))
            figures: Record = {"longest": longest["history"], "of_raw_at_longest": longest["exact"] / longest["raw_exact"]}
            if far and max(far) > 0:
                figures["flat"] = min(far) / max(far)
            result.setdefault(task, {})[policy] = figures
    return result
