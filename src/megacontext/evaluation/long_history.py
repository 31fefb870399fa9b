"""Does focus find what lies far below a high gist? Real memories, long histories, the session's window.

Files of held-out packages are ingested, as one memory per length; one file in four is kept back. An item is a stretch of such
a file: its first tokens are what a session was given, the next ones are scored, and what helps with them are the other files
of its package, which lie anywhere in the history, below gists of LOD 2 and 3. Every arm is a focus policy with the session's
budget and allocator, asked again every ``renewal`` tokens; all arms of an item see the same snapshots. ``recent`` reads the
newest raw tokens of the timeline instead, as many as the window holds.

Shapes: n items, H scored tokens.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext.core import BLOCK, EditHistory, WorkingContext, advance_within_budget
from megacontext.engine.assemble import Slots, slots_of
from megacontext.engine.bundle import Bundle
from megacontext.engine.focus import FOCUS_DEFAULTS, refocus
from megacontext.engine.ingest import ingest
from megacontext.engine.memory import Memory
from megacontext.engine.policies import FocusPolicy
from megacontext.engine.searches import searches_of
from megacontext.engine.session import Session, SessionConfig
from megacontext.engine.sources import Source
from megacontext.errors import ConfigError, DatasetError
from megacontext.evaluation.bootstrap import group_weights, interval
from megacontext.evaluation.scoring import Chunk, Scorer
from megacontext.models.positions import window_ranks

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
RECENT = "recent"
"""The arm that reads the newest raw tokens."""


@dataclass(frozen=True, kw_only=True)
class LongHistoryConfig:
    """``budget`` of the window; ``context`` tokens of an item before the scored ``horizon``; ``renewal`` tokens between two
    refocuses; ``items`` drawn with ``seed``."""

    budget: int = 1024
    context: int = 384
    horizon: int = 64
    renewal: int = 16
    items: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if self.horizon % self.renewal or self.items < 2:
            raise ConfigError("the horizon must be a multiple of the renewal, and there must be two items or more")


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a package: its real tokens, int64 [t]."""

    package: int
    name: str
    ids: IntArray


def split_files(files: Sequence[File], *, every: int = 4) -> tuple[list[File], list[File]]:
    """What is ingested, and what is kept back: every fourth file of a package, from its end."""
    kept: list[File] = []
    for package in sorted({file.package for file in files}):
        own = [file for file in files if file.package == package]
        kept += own[::-1][:-1:every]
    names = {(file.package, file.name) for file in kept}
    return [file for file in files if (file.package, file.name) not in names], kept


def make_memory(folder: Path, bundle: Bundle, files: Sequence[File], tokens: int) -> Memory:
    """A memory of about so many tokens of ``files``, in their order. DatasetError where there are fewer."""
    memory = Memory.create(folder, model=bundle.name, bundle=bundle)
    total = np.cumsum([len(file.ids) for file in files])
    if not len(total) or total[-1] < tokens:
        raise DatasetError(f"the files hold {int(total[-1]) if len(total) else 0:,} tokens, not {tokens:,}")
    chosen = files[: int(np.searchsorted(total, tokens)) + 1]
    sources = (
        Source(uri=f"text:{file.package}/{file.name}", text=bundle.tokenizer.decode(file.ids, skip_special_tokens=True))
        for file in chosen
    )
    ingest(memory.repository, bundle.base, bundle.gists, sources)
    return memory


def draw(kept: Sequence[File], config: LongHistoryConfig) -> list[tuple[File, int]]:
    """Files and the places in them at which items begin; longer files are drawn more often."""
    length = config.context + config.horizon
    room = np.array([max(len(file.ids) - length, 0) for file in kept])
    if not room.sum():
        raise DatasetError(f"no file that was kept back holds the {length} tokens of an item")
    rng = np.random.default_rng(config.seed)
    chosen = rng.choice(len(kept), size=config.items, p=room / room.sum())
    return [(kept[at], int(rng.integers(0, room[at]))) for at in chosen.tolist()]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """``nll`` float64 [n, H] and milliseconds of processor time a ``refocus`` of each arm; ``deep``: blocks read raw from
    the history before the session, a refocus; ``group`` int64 [n]: the file of each item."""

    nll: Mapping[str, FloatArray]
    refocus_ms: Mapping[str, float]
    deep: Mapping[str, float]
    group: IntArray


def measure(
    memory: Memory,
    items: Sequence[tuple[File, int]],
    arms: Mapping[str, FocusPolicy],
    config: LongHistoryConfig,
    *,
    progress: Callable[[int, Mapping[str, float]], bool] = lambda _, __: True,
) -> Outcome:
    """Score every item behind the window of every arm, and behind the newest raw tokens. ``progress`` is told the number of
    the item just done and its NLL by arm; where it returns False, the items so far are all there are."""
    nll: dict[str, list[FloatArray]] = {name: [] for name in (*arms, RECENT)}
    spent: dict[str, list[float]] = {name: [] for name in arms}
    deep: dict[str, list[int]] = {name: [] for name in arms}
    scorer = Scorer(base=memory.bundle.base, encoder=memory.bundle.gists, strategy=window_ranks(memory.bundle.gists))
    for number, (file, start) in enumerate(items):
        chunks: dict[str, list[Chunk]] = {name: [] for name in nll}
        for name, chunk, cost in _run(memory, file.ids[start:], arms, config):
            chunks[name].append(chunk)
            if cost is not None:
                spent[name].append(cost.milliseconds)
                deep[name].append(cost.deep)
        for name, made in chunks.items():
            nll[name].append(np.concatenate(scorer(made)))
        if not progress(number, {name: float(rows[-1].mean()) for name, rows in nll.items()}):
            items = items[: number + 1]
            break
    return Outcome(
        nll={name: np.stack(rows) for name, rows in nll.items()},
        refocus_ms={name: float(np.median(values)) for name, values in spent.items()},
        deep={name: float(np.mean(values)) for name, values in deep.items()},
        group=np.unique([f"{file.package}/{file.name}" for file, _ in items], return_inverse=True)[1].astype(np.int64),
    )


@dataclass(frozen=True, kw_only=True)
class _Cost:
    milliseconds: float
    deep: int


def _run(
    memory: Memory, ids: IntArray, arms: Mapping[str, FocusPolicy], config: LongHistoryConfig
) -> Iterator[tuple[str, Chunk, _Cost | None]]:
    """The chunks of one item, arm by arm, stretch by stretch; the session's branch is dropped in the end."""
    any_policy = next(iter(arms.values()))
    settings = SessionConfig(budget=config.budget, recent=min(SessionConfig.recent, config.budget // 4))
    with memory.session(policy=any_policy, config=settings) as session:
        history_blocks = session.snapshot.blocks
        session.append_tokens(ids[: config.context])
        windows = dict.fromkeys(arms, session.window)
        histories = dict.fromkeys(arms, EditHistory())
        searching = searches_of(memory.index, memory.suffix_index, memory.bundle)
        for at in range(0, config.horizon, config.renewal):
            seen = config.context + at
            # A session's document begins with a block.
            following, unfinished = ids[seen : seen + config.renewal], ids[seen // BLOCK * BLOCK : seen]
            view = replace(session.view(), searches=searching(session.snapshot))
            for name, policy in arms.items():
                timeline = session.window.timeline
                window, _ = advance_within_budget(windows[name], timeline)
                began = time.process_time()
                step = refocus(
                    replace(view, window=window, step=histories[name].step),
                    policy,
                    FOCUS_DEFAULTS.unlimited(),
                    histories[name],
                )
                spent = (time.process_time() - began) * 1000
                windows[name], histories[name] = step.after, step.history
                raw = step.after.index[step.after.lod == 0]
                cost = _Cost(milliseconds=spent, deep=int(np.count_nonzero(raw < history_blocks)))
                shown = slots_of(step.after, session.snapshot, unfinished, gists=memory.bundle.gists is not None)
                yield name, Chunk(context=shown, following=following, start=timeline.tokens), cost
            newest = _newest(session, unfinished, config.budget - config.renewal)
            yield RECENT, Chunk(context=newest, following=following, start=session.window.timeline.tokens), None
            session.append_tokens(following)
        branch = session.branch
    memory.drop_session(branch)


def _newest(session: Session, unfinished: IntArray, count: int) -> Slots:
    """The newest ``count`` raw tokens of the timeline, those of the unfinished block included."""
    timeline = session.window.timeline
    blocks = timeline.newest(count // BLOCK)
    lod, budget = np.zeros(len(blocks), np.int8), session.config.budget + BLOCK
    window = WorkingContext.trusted(timeline, lod, blocks, budget, session.config.recent)
    slots = slots_of(window, session.snapshot, unfinished, gists=False)
    return slots.take(np.arange(max(0, len(slots) - count), len(slots)))


def summary(outcome: Outcome, reference: str, *, seed: int = 0) -> dict[str, Any]:
    """NLL of each arm, and the paired difference of ``reference`` to it (negative: ``reference`` is better), with 95 %
    intervals, resampled by file."""
    weights = group_weights(outcome.group, seed)
    arms: dict[str, Any] = {}
    mine = outcome.nll[reference].mean(axis=1)
    for name, values in outcome.nll.items():
        mean, each = float(values.mean()), values.mean(axis=1)
        total = weights.sum(axis=1)
        difference = mine - each
        arms[name] = {
            "nll": mean,
            "nll_ci": interval(weights @ each / total),
            "reference_minus_arm": float(difference.mean()),
            "reference_minus_arm_ci": interval(weights @ difference / total),
            "refocus_ms": outcome.refocus_ms.get(name),
            "deep_blocks": outcome.deep.get(name),
        }
    return {"reference": reference, "items": len(outcome.group), "files": int(outcome.group.max()) + 1, "arms": arms}


def temporary_memory(bundle: Bundle, files: Sequence[File], tokens: int) -> tuple[tempfile.TemporaryDirectory[str], Memory]:
    """A memory that is gone with its folder, which comes first."""
    folder = tempfile.TemporaryDirectory()
    return folder, make_memory(Path(folder.name) / "memory", bundle, files, tokens)
