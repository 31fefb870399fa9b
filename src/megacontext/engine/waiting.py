"""Requests that wait: in turn between sessions, in order within one, and not more than there may be."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Container, Iterator

from megacontext.engine.request import Request
from megacontext.engine.session import Session
from megacontext.errors import QueueFull


class WaitingLine:
    """At most ``limit`` requests, at most ``per_session`` of one session. Not locked: the scheduler does that."""

    def __init__(self, limit: int, per_session: int) -> None:
        self._limit, self._per_session = limit, per_session
        self._by_session: OrderedDict[Session, deque[Request]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(requests) for requests in self._by_session.values())

    def __iter__(self) -> Iterator[Request]:
        return iter([request for requests in self._by_session.values() for request in requests])

    def add(self, request: Request) -> None:
        """To the end. QueueFull where there are as many as may be."""
        if len(self) >= self._limit:
            raise QueueFull(f"{self._limit} requests wait already: try again when some are done")
        if len(self._by_session.get(request.session, ())) >= self._per_session:
            raise QueueFull(f"{self._per_session} requests of this session wait already: try again when some are done")
        self._by_session.setdefault(request.session, deque()).append(request)

    def put_back(self, request: Request) -> None:
        """One that was served for a while goes on when all other sessions had their turn; there is always room for it."""
        self._by_session.setdefault(request.session, deque()).appendleft(request)
        self._by_session.move_to_end(request.session)

    def take(self, busy: Container[Session]) -> Request | None:
        """The next one whose session is not ``busy``; its session goes to the end."""
        for session, requests in self._by_session.items():
            if session not in busy:
                request = requests.popleft()
                self._by_session.move_to_end(session)
                self._tidy(session)
                return request
        return None

    def remove(self, request: Request) -> None:
        """Forget one that waits."""
        self._by_session[request.session].remove(request)
        self._tidy(request.session)

    def _tidy(self, session: Session) -> None:
        if not self._by_session[session]:
            del self._by_session[session]
