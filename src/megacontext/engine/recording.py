"""A session's strips and trace as an event log, and the same windows again without any model.

One JSON object a line. The first, ``session``, says what the window was like at the start; then ``token`` for each decoded
token, ``room`` where appended tokens made the window collapse something, ``refocus`` with scores, decisions and the window that
it left, and ``window`` where tokens came in any other way (a prompt). Windows are runs ``[lod, first index, count]``.

A replay applies the recorded edits through the edit algebra and compares with the recorded window, so that what it shows is
what was there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

import numpy as np

from megacontext.core import Collapse, Edit, Expand, FocusScores, Targets, Timeline, WorkingContext, apply_all, describe
from megacontext.engine.events import Event, MadeRoom, Refocused, TokenDecoded, TokensAppended
from megacontext.errors import CorruptObject, FormatVersionError, InvalidInput, MegaContextError

if TYPE_CHECKING:
    from megacontext.engine.focus import Refocus
    from megacontext.engine.session import Session
    from megacontext.engine.text_stream import TextStream

FORMAT = 1
REFUSED = 6
"""Refused edits that a refocus keeps, the strongest; those that were chosen are all kept."""
_DIGITS = 4

Record = dict[str, Any]


class Recorder:
    """A listener that writes what a session does to ``out``, a line each; give it the session with ``begin``.

    What came before ``begin`` is not in the log. Text stands with the token that made it certain.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._session: Session | None = None
        self._window: WorkingContext | None = None
        self._text: TextStream | None = None
        self._started = 0.0

    @classmethod
    def to(cls, path: Path) -> Self:
        """A recorder that writes a new file; close it, or use it as a context manager."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(path.open("w", encoding="utf-8"))

    def close(self) -> None:
        """Ends the log."""
        self._out.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def begin(self, session: Session, *, prompt: str = "") -> None:
        """Write how the window stands now; ``prompt`` is what is going to be asked, for whoever reads the log."""
        from megacontext.engine.text_stream import TextStream

        window = session.window
        timeline = window.timeline
        self._session, self._window, self._started = session, window, time.perf_counter()
        self._text = TextStream(session.bundle.tokenizer)
        self._write(
            "session",
            format=FORMAT,
            model=session.bundle.name,
            policy=session.policy.name,
            prompt=prompt,
            budget=window.budget,
            recent=window.recent,
            vectors=window.vectors,
            refocus_every=session.config.refocus_every,
            timeline={name: getattr(timeline, name) for name in ("blocks", "open_tokens", "dead", "denied", "pruned")},
            window=runs_of(window),
        )

    def __call__(self, event: Event) -> None:
        """See ``engine.events``."""
        if self._session is None or self._window is None or self._text is None:
            return
        if isinstance(event, TokensAppended):
            self._write("appended", ids=event.ids.tolist(), tokens=event.tokens)
        elif isinstance(event, MadeRoom):
            self._now("room", self._session.window, edits=[edit_data(edit) for edit in event.edits])
        elif isinstance(event, Refocused):
            if self._window != event.result.before:
                self._now("window", event.result.before)
            self._window = event.result.after
            self._write("refocus", **_refocus_data(event.step, event.result), window=runs_of(self._window), **self._cache())
        elif isinstance(event, TokenDecoded):
            self._window = advanced(self._window, event.tokens)
            text = self._text.push(event.token)
            self._write("token", token=event.token, text=text, tokens=event.tokens, cost=event.cost, **self._cache())

    def _now(self, kind: str, window: WorkingContext, **data: Any) -> None:
        self._window = window
        self._write(kind, **data, tokens=window.timeline.tokens, window=runs_of(window))

    def _cache(self) -> Record:
        assert self._session is not None, "called from events of a session"
        stats = self._session.cache_stats
        return {"forwarded": stats.forwarded, "reused": stats.reused}

    def _write(self, kind: str, **data: Any) -> None:
        record = {"event": kind, "at": round(time.perf_counter() - self._started, 4), **data}
        self._out.write(json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One record of a log and the ``window`` after it; ``before`` and ``scores`` where it is a refocus."""

    kind: str
    window: WorkingContext
    record: Mapping[str, Any]
    before: WorkingContext | None = None
    scores: FocusScores | None = None


def replay(path: Path) -> Iterator[Frame]:
    """The windows of a recorded session, record by record; no model is needed.

    A last line that was cut off is left out. InvalidInput for a file that is no recording, FormatVersionError for one of a
    later version, CorruptObject where the windows are not what the edits give.
    """
    with path.open(encoding="utf-8") as lines:
        yield from frames(lines, name=path.name)


def frames(lines: Iterable[str], *, name: str = "recording") -> Iterator[Frame]:
    """As ``replay``, from the lines of a log."""
    window: WorkingContext | None = None
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            return
        try:
            record = json.loads(line)
            frame = _first(record, name) if window is None else _next(window, record)
        except FormatVersionError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, MegaContextError) as error:
            if window is None:
                raise InvalidInput(f"{name} is no recording of a session: make one with generate --record") from error
            raise CorruptObject(f"{name}, line {number}: {error}") from error
        window = frame.window
        yield frame
    if window is None:
        raise InvalidInput(f"{name} holds no session: make a recording with generate --record")


def _first(record: Record, name: str) -> Frame:
    if record["event"] != "session":
        raise ValueError("a recording begins with its session")
    if record["format"] > FORMAT:
        raise FormatVersionError(
            f"{name} has format {record['format']}, this version reads up to {FORMAT}: upgrade megacontext"
        )
    facts = record["timeline"]
    ranges = {each: tuple((start, stop) for start, stop in facts[each]) for each in ("dead", "denied", "pruned")}
    timeline = Timeline(facts["blocks"], facts["open_tokens"], **ranges)
    lod, index = _entries(record["window"])
    window = WorkingContext(timeline, lod, index, record["budget"], record["recent"], record["vectors"])
    return Frame(kind="session", window=window, record=record)


def _next(window: WorkingContext, record: Record) -> Frame:
    kind = record["event"]
    if kind == "token":
        after = advanced(window, record["tokens"])
        if after.cost != record["cost"]:
            raise ValueError(f"the window costs {after.cost} where {record['cost']} was recorded")
        return Frame(kind=kind, window=after, record=record)
    if kind == "refocus":
        after = apply_all([edit_of(edit) for edit in record["edits"]], window)
        if after != _tiled(window, window.timeline, record):
            raise ValueError("the recorded edits do not lead to the recorded window")
        return Frame(kind=kind, window=after, record=record, before=window, scores=_scores_of(record))
    if kind in ("room", "window"):
        grown = window.timeline.append(record["tokens"] - window.timeline.tokens)
        return Frame(kind=kind, window=_tiled(window, grown, record), record=record)
    if kind == "appended":
        return Frame(kind=kind, window=window, record=record)
    raise ValueError(f"{kind!r} is no event of a session")


def advanced(window: WorkingContext, tokens: int) -> WorkingContext:
    """The window when the timeline holds ``tokens``; itself where it does already."""
    missing = tokens - window.timeline.tokens
    return window.advance(window.timeline.append(missing)) if missing else window


def runs_of(window: WorkingContext) -> list[list[int]]:
    """The entries as runs ``[lod, first index, count]`` of neighbours of one level."""
    lod, index = window.lod.astype(np.int64), window.index
    breaks = np.flatnonzero((np.diff(lod) != 0) | (np.diff(index) != 1)) + 1
    edges = [0, *breaks.tolist(), len(lod)] if len(lod) else []
    return [[int(lod[start]), int(index[start]), stop - start] for start, stop in pairwise(edges)]


def edit_data(edit: Edit) -> list[Any]:
    """An edit as ``["expand" | "collapse", lod, index]``."""
    return ["expand" if isinstance(edit, Expand) else "collapse", edit.lod, edit.index]


def edit_of(data: Any) -> Edit:
    """The edit that ``edit_data`` wrote."""
    kinds: dict[str, type[Expand] | type[Collapse]] = {"expand": Expand, "collapse": Collapse}
    kind, lod, index = data
    return kinds[kind](lod, index)


def _refocus_data(step: int, result: Refocus) -> Record:
    decisions = result.plan.decisions
    shown = [each for each in decisions if each.chosen] + [each for each in decisions if not each.chosen][:REFUSED]
    targets = result.scores.targets
    data: Record = {
        "step": step,
        "edits": [edit_data(edit) for edit in result.plan.edits],
        "scores": [round(value, _DIGITS) for value in result.scores.entries.tolist()],
        "decisions": [
            {
                "edit": describe(each.edit),
                "score": round(each.score, _DIGITS),
                "cost": each.cost,
                "chosen": each.chosen,
                "reason": each.reason,
            }
            for each in shown
        ],
    }
    if targets is not None:
        data["targets"] = [targets.block.tolist(), [round(value, _DIGITS) for value in targets.gain.tolist()]]
    return data


def _scores_of(record: Record) -> FocusScores:
    targets = Targets(*record["targets"]) if "targets" in record else None
    return FocusScores(record["scores"], targets)


def _tiled(window: WorkingContext, timeline: Timeline, record: Record) -> WorkingContext:
    lod, index = _entries(record["window"])
    return WorkingContext(timeline, lod, index, window.budget, window.recent, window.vectors)


def _entries(runs: list[list[int]]) -> tuple[Any, Any]:
    if not runs:
        return np.zeros(0, np.int8), np.zeros(0, np.int64)
    lod = np.concatenate([np.full(count, lod, np.int8) for lod, _, count in runs])
    return lod, np.concatenate([first + np.arange(count, dtype=np.int64) for _, first, count in runs])
