"""Where the time of a decoded token goes: the steps of a turn, each under a clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from megacontext.core import FocusScores
from megacontext.engine.policies import FocusPolicy, FocusView
from megacontext.engine.session import Session
from megacontext.engine.turn import Turn

PARTS = {
    "base": "the base reads one token",
    "recomputation": "the base reads more, behind an edit or a prompt",
    "lens": "the focus policy scores the window",
    "allocator": "edits are planned and applied",
    "assembly": "entries become slots; what the cache keeps",
    "storage": "the token is written; a finished block gets its gists",
    "rest": "sampling, text, the loop itself",
}
"""Part → what is done in it. The order is that of a table."""


class TimedPolicy:
    """A focus policy that adds up the ``seconds`` that its scores take."""

    def __init__(self, policy: FocusPolicy) -> None:
        self._policy, self.name, self.seconds = policy, policy.name, 0.0

    def score(self, view: FocusView) -> FocusScores:
        """See ``FocusPolicy.score``."""
        started = time.perf_counter()
        scores = self._policy.score(view)
        self.seconds += time.perf_counter() - started
        return scores


class Profile:
    """Drives turns token by token and adds up ``seconds`` by part, for ``tokens`` tokens, ``refocuses``, and ``recomputed``
    slots that the base read more than once or all at once."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.tokens = self.refocuses = self.recomputed = 0

    def token(self, session: Session, turn: Turn, given: int | None = None) -> str:
        """Decode one token, or read ``given`` in its place; the text that it makes certain."""
        started, before = time.perf_counter(), self.total
        if turn.due_refocus:
            self._refocus(session)
        with self._part("assembly"):
            step = session.next_input()
        alone = len(step) == 1
        with self._part("base" if alone else "recomputation"):
            logits = session.run(step)
        self.recomputed += 0 if alone else len(step)
        chosen = turn.choose(logits) if given is None else given
        with self._part("storage"):
            text = turn.accept(chosen)
        self.tokens += 1
        self.seconds["rest"] += time.perf_counter() - started - (self.total - before)
        return text

    def pieces(self, session: Session, turn: Turn) -> Iterator[str]:
        """The whole turn, yielding text as it becomes certain."""
        while not turn.finished:
            if piece := self.token(session, turn):
                yield piece
        if rest := turn.end():
            yield rest

    @property
    def total(self) -> float:
        """Seconds in all parts."""
        return sum(self.seconds.values())

    def ms_per_token(self) -> dict[str, float]:
        """Milliseconds by part."""
        return {part: round(1e3 * spent / max(1, self.tokens), 4) for part, spent in self.seconds.items()}

    def _refocus(self, session: Session) -> None:
        policy = TimedPolicy(session.policy)
        started = time.perf_counter()
        session.refocus(policy=policy)
        self.seconds["lens"] += policy.seconds
        self.seconds["allocator"] += time.perf_counter() - started - policy.seconds
        self.refocuses += 1

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started
