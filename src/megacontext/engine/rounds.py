"""What a scheduler does for its sessions, round by round.

A round does a little for everybody: whoever is to end, ends; rows that are free go to those that wait; prompts are appended;
sessions that are due refocus, scored together; then every session whose next token is one slot away gets it, in one pass,
and those that have much to read (a prompt, what a refocus changed) share a pass of at most ``chunk`` slots, first come first
served. So a long read delays a token of others by one chunk, not by its length. When others wait, a row is given up after
``turn`` tokens: nobody starves.

What goes wrong in one session ends its request and no other: a pass that fails is done again in halves, until it is known
whose fault it is.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from megacontext.engine.batch_focus import Scored, score_together
from megacontext.engine.batch_reader import BatchReader, Reading
from megacontext.engine.bundle import Bundle
from megacontext.engine.request import Ended, Request
from megacontext.engine.rows import Rows
from megacontext.engine.running import Running
from megacontext.engine.session import Session, SessionConfig
from megacontext.engine.waiting import WaitingLine
from megacontext.errors import ConfigError, RequestCancelled, SessionClosed


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """``rows`` sessions are served at once, with budgets of at most ``slots`` (keys and values for all of them are held);
    ``queue`` requests may wait, ``per_session`` of one session; ``chunk`` slots of long reads, and as many tokens of prompts,
    go into a round; after ``turn`` tokens a row is given up if somebody waits."""

    rows: int = 16
    slots: int = SessionConfig.budget
    queue: int = 256
    per_session: int = 8
    chunk: int = 512
    turn: int = 256

    def __post_init__(self) -> None:
        if min(self.rows, self.slots, self.queue, self.per_session, self.chunk, self.turn) < 1:
            raise ConfigError("rows, slots, queue, per_session, chunk and turn of a scheduler must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SchedulerStats:
    """Since the scheduler began: rounds, tokens decoded, passes of the base, slots that went through it, sessions that were
    refocused, and how many passes were done again in halves since they failed."""

    rounds: int = 0
    tokens: int = 0
    passes: int = 0
    slots: int = 0
    refocused: int = 0
    halved: int = 0


class Rounds:
    """Not for several threads at once, but for ``line``, which is looked at under ``lock``."""

    def __init__(
        self,
        bundle: Bundle,
        config: SchedulerConfig,
        line: WaitingLine,
        lock: threading.Condition,
        clock: Callable[[], float],
    ) -> None:
        self.config, self._line, self._lock, self._clock = config, line, lock, clock
        self._reader = BatchReader(bundle.base, rows=config.rows, slots=config.slots)
        self._rows = Rows(config.rows, self._reader.open)
        self.running: list[Running] = []
        self._long: deque[Running] = deque()
        self.stats = SchedulerStats()

    def step(self) -> bool:
        """One round; whether there is more to do. An interrupt ends the request that it hits, and comes out."""
        self._end_some()
        self._admit()
        self._append_prompts()
        self._refocus()
        self._read()
        self._count(rounds=1)
        return self.busy

    @property
    def busy(self) -> bool:
        """Whether anybody is served or waits."""
        with self._lock:
            return bool(self.running or len(self._line))

    @property
    def sessions(self) -> set[Session]:
        """All that are served, wait or have a row."""
        with self._lock:
            return {request.session for request in self._line} | self._served | set(self._rows.sessions)

    def _end_some(self) -> None:
        """Whoever was cancelled, is late or has lost its session."""
        now = self._clock()
        with self._lock:
            over = [(request, reason) for request in self._line if (reason := self._reason(request, now))]
            for request, _ in over:
                self._line.remove(request)
        for request, (ended, error) in over:
            request.finish(ended, error)
        for run in list(self.running):
            if reason := self._reason(run.request, now):
                self._end(run, *reason)
        self._rows.sweep()

    @staticmethod
    def _reason(request: Request, now: float) -> tuple[Ended, BaseException] | None:
        if request.session.closed:
            return Ended.FAILED, SessionClosed(f"session {request.session.branch} was closed")
        return request.reason_to_end(now)

    def _admit(self) -> None:
        """Rows for those that wait; where there is none, from those that had theirs for long enough."""
        with self._lock:
            wanting = sum(1 for session in {request.session for request in self._line} if session not in self._served)
            spare = self.config.rows - len(self.running)
        for run in [run for run in self.running if run.since >= self.config.turn][: max(0, wanting - spare)]:
            self._leave(run)
            with self._lock:
                self._line.put_back(run.request)
            run.park()
        while len(self.running) < self.config.rows:
            with self._lock:
                request = self._line.take(self._served)
            if request is None:
                return
            run = Running.of(request)
            self.running.append(run)
            with self._guarded(run):
                self._rows.take(run.session, self._served)

    @property
    def _served(self) -> set[Session]:
        return {run.session for run in self.running}

    def _append_prompts(self) -> None:
        room = self.config.chunk
        for run in list(self.running):
            if room <= 0:
                return
            if run.turn is None and run in self.running:
                with self._guarded(run):
                    room -= run.append(room)

    def _refocus(self) -> None:
        """All that are due, scored together."""
        views = []
        for run in [run for run in self.running if run.due]:
            with self._guarded(run):
                views.append((run, run.session.view()))
        for (run, _), scores in zip(views, score_together([(run.session.policy, view) for run, view in views]), strict=True):
            with self._guarded(run):
                if isinstance(scores, Exception):
                    raise scores
                run.refocus(Scored(run.session.policy.name, scores))
                self._count(refocused=1)

    def _read(self) -> None:
        for run in list(self.running):
            if run.reading is None and run.turn is not None and run in self.running:
                with self._guarded(run):
                    run.reading = Reading(run.session)
                    if run.reading.left > 1 or run.reading.alone:
                        self._long.append(run)
        near = [run for run in self.running if run.reading and run not in self._long]
        self._forward(near, [1] * len(near))
        self._forward(*self._next_chunk())

    def _next_chunk(self) -> tuple[list[Running], list[int]]:
        """Of those with much to read, the first, and those that fit beside it: at most ``chunk`` slots, padding included."""
        chosen: list[Running] = []
        size = 0
        for run in self._long:
            assert run.reading is not None
            left = min(run.reading.left, self.config.chunk)
            if not chosen:
                chosen, size = [run], left
                if run.reading.alone:
                    break
            elif not run.reading.alone and 2 * left >= size and (len(chosen) + 1) * size <= self.config.chunk:
                chosen.append(run)
        return chosen, [min(run.reading.left, size) for run in chosen if run.reading]

    def _forward(self, runs: Sequence[Running], counts: Sequence[int]) -> None:
        try:
            for run, logits in zip(runs, self._pass(runs, counts), strict=True):
                # A listener may have ended others on the way here.
                if run in self.running:
                    with self._guarded(run):
                        self._took(run, logits)
        except BaseException:
            # Interrupted: what has to be read is asked anew, which is right whatever was done of it.
            for run in runs:
                self._leave_line(run)
            raise

    def _took(self, run: Running, logits: Tensor | Exception) -> None:
        if isinstance(logits, Exception):
            raise logits
        if run.reading and not run.reading.left:
            self._leave_line(run)
            run.accept(logits)
            self._count(tokens=1)
            if run.finished:
                self._end(run, run.ended)

    def _pass(self, runs: Sequence[Running], counts: Sequence[int]) -> list[Tensor | Exception]:
        """Logits of each, or what went wrong with it."""
        if not runs:
            return []
        readings = [run.reading for run in runs if run.reading]
        try:
            found = list(self._reader.read(readings, counts))
        except Exception as error:
            # What the failed pass held in memory goes first.
            traceback.clear_frames(error.__traceback__)
            if len(runs) == 1:
                return [error]
        else:
            self._count(passes=1, slots=sum(counts))
            return [*found]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._count(halved=1)
        middle = len(runs) // 2
        return self._pass(runs[:middle], counts[:middle]) + self._pass(runs[middle:], counts[middle:])

    # -- endings --------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self, run: Running) -> Iterator[None]:
        """What goes wrong within is this request's end, and nobody else's. An interrupt comes out."""
        try:
            yield
        except Exception as error:
            closed = run.session.closed and not isinstance(error, SessionClosed)
            told = SessionClosed(f"session {run.session.branch} was closed") if closed else error
            if told is not error:
                told.__cause__ = error
            self._end(run, Ended.FAILED, told)
        except BaseException as interrupt:
            told = RequestCancelled("interrupted")
            told.__cause__ = interrupt
            self._end(run, Ended.CANCELLED, told)
            raise

    def _end(self, run: Running, ended: Ended, error: BaseException | None = None) -> None:
        """Take a run out and tell its request. What it decoded is acknowledged where that can be done."""
        if run not in self.running:
            return
        self._leave(run)
        rest = ""
        try:
            rest = run.end()
        except Exception as late:
            if error is None:
                ended, error = Ended.FAILED, late
        finally:
            run.request.push(rest)
            run.request.finish(ended, error)

    def _leave(self, run: Running) -> None:
        self._leave_line(run)
        self.running.remove(run)

    def _leave_line(self, run: Running) -> None:
        run.reading = None
        with suppress(ValueError):
            self._long.remove(run)

    def give_back(self, session: Session, ended: Ended, error: BaseException) -> None:
        """End all requests of ``session`` and take its row."""
        with self._lock:
            waiting = [request for request in self._line if request.session is session]
            for request in waiting:
                self._line.remove(request)
        for request in waiting:
            request.finish(ended, error)
        for run in [run for run in self.running if run.session is session]:
            self._end(run, ended, error)
        self._rows.release(session)

    def _count(self, **more: int) -> None:
        before = vars(self.stats)
        self.stats = SchedulerStats(**{**before, **{name: before[name] + count for name, count in more.items()}})
