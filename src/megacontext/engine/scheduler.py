"""Many sessions on one device: their decoding in one pass, their refocusing scored in one pass, long reads in pieces.

Requests come in from any thread, wait in a line that is bounded, and are served in rounds (``engine.rounds``). One thread at
a time is in a round, so models and sessions have one user; a session that was submitted is the scheduler's until ``release``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from megacontext.engine.bundle import Bundle
from megacontext.engine.request import Ended, Request
from megacontext.engine.rounds import Rounds, SchedulerConfig, SchedulerStats
from megacontext.engine.sampling import SamplingConfig
from megacontext.engine.session import Session
from megacontext.engine.waiting import WaitingLine
from megacontext.errors import BudgetError, ConfigError, RequestCancelled, SchedulerClosed, SessionClosed

__all__ = ["Ended", "Request", "Scheduler", "SchedulerConfig", "SchedulerStats"]


class Scheduler:
    """Serves sessions of one bundle. As a context manager it has a thread of its own; without ``start`` somebody calls
    ``step``, and whoever iterates over a request does so. ``clock`` gives seconds, for deadlines."""

    def __init__(
        self, bundle: Bundle, config: SchedulerConfig | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config, self._bundle, self._clock = config or SchedulerConfig(), bundle, clock
        # Whoever is in a round holds the first; the line and what else other threads touch is under the second.
        self._in_round = threading.RLock()
        self._inbox = threading.Condition()
        self._line = WaitingLine(self.config.queue, self.config.per_session)
        self._rounds = Rounds(bundle, self.config, self._line, self._inbox, clock)
        self._closing: bool | None = None
        self._visitors = 0
        self._thread: threading.Thread | None = None

    # -- for any thread -------------------------------------------------------------------------

    def submit(
        self,
        session: Session,
        prompt: str = "",
        *,
        max_new_tokens: int = 64,
        sampling: SamplingConfig | None = None,
        stop_at_eos: bool = True,
        deadline: float | None = None,
    ) -> Request:
        """Ask for an answer of ``session`` to ``prompt``; ``deadline`` in seconds from now. Comes back at once.

        Requests of one session are served in order. QueueFull where too many wait; SchedulerClosed, SessionClosed; BudgetError
        where the session's budget is more than a row has; ConfigError for a session of another model.
        """
        if session.bundle.base is not self._bundle.base:
            raise ConfigError("this session was made with another model: a scheduler serves the sessions of one bundle")
        if session.config.budget > self.config.slots:
            raise BudgetError(
                f"a session's budget of {session.config.budget} does not fit a row of {self.config.slots} slots: "
                "lower it, or make the scheduler with more slots"
            )
        if session.closed:
            raise SessionClosed(f"session {session.branch} is closed")
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        request = Request(
            session,
            prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling or SamplingConfig(),
            stop_at_eos=stop_at_eos,
            deadline=None if deadline is None else self._clock() + deadline,
            help_out=self._help_out,
            wake=self._wake,
        )
        with self._inbox:
            if self._closing is not None:
                raise SchedulerClosed("the scheduler is shut down")
            self._line.add(request)
            self._inbox.notify_all()
        return request

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        with self._inbox:
            return len(self._line)

    @property
    def running(self) -> int:
        """Requests that are served now."""
        return len(self._rounds.running)

    @property
    def stats(self) -> SchedulerStats:
        """What was done since it began."""
        return self._rounds.stats

    def release(self, session: Session) -> None:
        """Give a session back: its requests end with RequestCancelled, and its row is free. Waits for the end of a round."""
        with self._between_rounds():
            self._rounds.give_back(session, Ended.CANCELLED, RequestCancelled("the session was taken from the scheduler"))

    def close_session(self, session: Session) -> None:
        """Close a session, whatever is going on: its requests end with SessionClosed, its branch is let go."""
        with self._between_rounds():
            self._rounds.give_back(session, Ended.FAILED, SessionClosed(f"session {session.branch} was closed"))
            session.close()

    def start(self) -> None:
        """Serve in a thread of its own from now on."""
        with self._inbox:
            if self._closing is not None:
                raise SchedulerClosed("the scheduler is shut down")
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="megacontext-scheduler", daemon=True)
                self._thread.start()

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests; finish those there are, or with ``drain`` false end them with SchedulerClosed. Sessions stay
        open and are their owner's again."""
        with self._inbox:
            self._closing = drain if self._closing is None else self._closing and drain
            self._inbox.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        else:
            self._finish()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(drain=error is None)

    # -- rounds and threads ---------------------------------------------------------------------

    def step(self) -> bool:
        """One round; whether there is more to do. An interrupt ends the request that it hits, and comes out."""
        with self._in_round:
            return self._rounds.step()

    @contextmanager
    def _between_rounds(self) -> Iterator[None]:
        """Within, nobody is in a round; the scheduler's thread lets whoever asks for it go first."""
        with self._inbox:
            self._visitors += 1
        try:
            with self._in_round:
                yield
        finally:
            with self._inbox:
                self._visitors -= 1
                self._inbox.notify_all()

    def _help_out(self) -> bool:
        """Do a round for somebody who waits, where no thread does; whether that was so."""
        if self._thread is not None or self._closing is not None:
            return False
        self.step()
        return True

    def _wake(self) -> None:
        with self._inbox:
            self._inbox.notify_all()

    def _serve(self) -> None:
        try:
            while True:
                with self._inbox:
                    self._inbox.wait_for(lambda: self._closing is not None or (self._rounds.busy and not self._visitors))
                    if self._closing is not None:
                        break
                self.step()
        finally:
            self._finish()

    def _finish(self) -> None:
        """The last rounds, and everything given back."""
        with self._in_round:
            try:
                while self._closing and self.step():
                    pass
            finally:
                self._closing = False
                error = SchedulerClosed("the scheduler was shut down before the request was done")
                for session in self._rounds.sessions:
                    self._rounds.give_back(session, Ended.CANCELLED, error)
