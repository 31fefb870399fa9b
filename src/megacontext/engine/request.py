"""A request to a scheduler, as both sides see it: pieces of text come out while it is served, and at the end an outcome.

Any thread may read it and cancel it; one reader at a time takes its pieces.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from megacontext.engine.sampling import SamplingConfig
from megacontext.errors import DeadlineExceeded, RequestCancelled

if TYPE_CHECKING:
    from megacontext.engine.running import Running
    from megacontext.engine.session import Session


class Ended(StrEnum):
    """Why a request is over."""

    END_OF_TEXT = "end of text"
    LENGTH = "length"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """``text`` is all that was given out, of ``tokens`` decoded tokens, also where it ``ended`` with an ``error``."""

    ended: Ended
    text: str
    tokens: int
    error: BaseException | None = None


class Request:
    """Made by ``Scheduler.submit``. Iterate over its pieces of text, with ``for`` or ``async for``; or wait for ``result``.

    Both raise the error that ended it, if one did: RequestCancelled, DeadlineExceeded, SessionClosed, SchedulerClosed, or
    whatever its session ran into.
    """

    def __init__(
        self,
        session: Session,
        prompt: str,
        *,
        max_new_tokens: int,
        sampling: SamplingConfig,
        stop_at_eos: bool,
        deadline: float | None,
        help_out: Callable[[], bool],
        wake: Callable[[], None],
    ) -> None:
        self.session, self.prompt, self.max_new_tokens = session, prompt, max_new_tokens
        self.sampling, self.stop_at_eos, self.deadline = sampling, stop_at_eos, deadline
        self._help_out, self._wake = help_out, wake
        self.parked: Running | None = None
        """What the scheduler keeps of it while it waits to go on."""
        self._changed = threading.Condition()
        self._pieces: deque[str] = deque()
        self._text: list[str] = []
        self._tokens = 0
        self._cancelled = False
        self._outcome: Outcome | None = None
        self._sleepers: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    # -- for whoever asked ----------------------------------------------------------------------

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while it has not."""
        return self._outcome

    @property
    def tokens(self) -> int:
        """Tokens decoded so far."""
        return self._tokens

    @property
    def text(self) -> str:
        """All that was given out so far."""
        return "".join(self._text)

    def cancel(self) -> None:
        """Ask for its end; it comes before the next token. What was decoded stays in the session. Does nothing at the end."""
        self._cancelled = True
        self._wake()

    def result(self, timeout: float | None = None) -> Outcome:
        """Wait for the end. TimeoutError where it does not come within ``timeout`` seconds; the request goes on then."""
        while self._outcome is None and self._help_out():
            pass
        with self._changed:
            if not self._changed.wait_for(lambda: self._outcome is not None, timeout):
                raise TimeoutError(f"the request is not done after {timeout} s")
        return self._checked()

    def __iter__(self) -> Iterator[str]:
        while (piece := self._take()) is not None or self._outcome is None:
            if piece is not None:
                yield piece
            elif not self._help_out():
                with self._changed:
                    self._changed.wait_for(lambda: self._pieces or self._outcome is not None)
        self._checked()

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            sleeper = self._sleep_until_changed()
            if (piece := self._take()) is not None:
                yield piece
            elif self._outcome is not None:
                break
            elif not await asyncio.to_thread(self._help_out):
                await sleeper
        self._checked()

    # -- for the scheduler ----------------------------------------------------------------------

    def reason_to_end(self, now: float) -> tuple[Ended, BaseException] | None:
        """Whether it is to end at time ``now``, in the clock of its deadline."""
        if self._cancelled:
            return Ended.CANCELLED, RequestCancelled("the request was cancelled")
        if self.deadline is not None and now >= self.deadline:
            return Ended.EXPIRED, DeadlineExceeded("the request was not done in time: give it longer, or ask for fewer tokens")
        return None

    def push(self, piece: str, tokens: int = 0) -> None:
        """Give out a piece, of so many more tokens."""
        with self._changed:
            self._tokens += tokens
            if piece:
                self._pieces.append(piece)
                self._text.append(piece)
                self._tell()

    def finish(self, ended: Ended, error: BaseException | None = None) -> None:
        """It is over; only the first time counts."""
        with self._changed:
            if self._outcome is None:
                self._outcome = Outcome(ended=ended, text=self.text, tokens=self._tokens, error=error)
                self._tell()

    # -- parts ----------------------------------------------------------------------------------

    def _take(self) -> str | None:
        with self._changed:
            return self._pieces.popleft() if self._pieces else None

    def _checked(self) -> Outcome:
        assert self._outcome is not None
        if self._outcome.error is not None:
            raise self._outcome.error
        return self._outcome

    def _sleep_until_changed(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._changed:
            self._sleepers = [(loop, future)]
        return future

    def _tell(self) -> None:
        self._changed.notify_all()
        for loop, future in self._sleepers:
            # A loop that is closed has nobody left who waits.
            if not loop.is_closed():
                loop.call_soon_threadsafe(_rouse, future)
        self._sleepers = []


def _rouse(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
