"""Which session has which row. A session keeps its row between requests, as long as nobody else needs it."""

from __future__ import annotations

from collections.abc import Callable, Container

from megacontext.engine.session import Session
from megacontext.models import KeyValueCache


class Rows:
    """``count`` rows; ``make`` gives an empty cache in one of them."""

    def __init__(self, count: int, make: Callable[[int], KeyValueCache]) -> None:
        self._make = make
        self._free = list(range(count))[::-1]
        # The one that was used last stands last.
        self._of: dict[Session, int] = {}

    @property
    def sessions(self) -> list[Session]:
        """Those that have a row."""
        return list(self._of)

    def take(self, session: Session, busy: Container[Session]) -> None:
        """Give ``session`` a row: its own, a free one, or that of whoever is not ``busy`` and was served longest ago."""
        if session in self._of:
            self._of[session] = self._of.pop(session)
            return
        if not self._free:
            self.release(next(other for other in self._of if other not in busy))
        row = self._free.pop()
        self._of[session] = row
        session.house(lambda: self._make(row))

    def release(self, session: Session) -> None:
        """Take its row from ``session``, if it has one."""
        if (row := self._of.pop(session, None)) is not None:
            # The lowest free row first: rows that lie side by side are read where they lie.
            self._free = sorted([*self._free, row], reverse=True)
            session.house(None)

    def sweep(self) -> None:
        """Take the rows of sessions that were closed."""
        for session in [session for session in self._of if session.closed]:
            self.release(session)
