"""A listener that checks the invariants of a session at every step and tells each step as plain data.

For the proof-of-concept loop, tests, and anybody who doubts: it repairs nothing, and a broken invariant ends the work
with an InvariantError that names the entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from megacontext.core import Edit, Expand, Timeline, describe, invariants, node_blocks
from megacontext.engine.events import Event, MadeRoom, Refocused, TokenDecoded
from megacontext.engine.session import Session
from megacontext.errors import InvariantError

Record = dict[str, Any]


class SessionChecks:
    """Give it to a session as its listener, then call ``watch`` with that session.

    Records: ``room`` (edits that made room for tokens), ``refocus`` (edits with score, cost and reason), ``decode``; each with
    the window's ``cost`` and ``tokens``. They hold no times, so that equal runs give equal records.
    """

    def __init__(self, tell: Callable[[Record], None]) -> None:
        self._tell = tell
        self._session: Session | None = None
        self._timeline = Timeline(0)
        self.counts = {"steps": 0, "expansions": 0, "collapses": 0}

    def watch(self, session: Session) -> None:
        """Check this session from now on, beginning with its first window."""
        self._session, self._timeline = session, session.window.timeline
        self._check()

    def __call__(self, event: Event) -> None:
        """One event of the session; see ``Listener``."""
        record = self._record(event)
        if record is None or self._session is None:
            return
        self._check()
        window = self._session.window
        self._tell({**record, "cost": window.cost, "budget": window.budget, "tokens": window.timeline.tokens})

    def _record(self, event: Event) -> Record | None:
        if isinstance(event, TokenDecoded):
            return {"event": "decode", "token": event.token}
        if isinstance(event, MadeRoom):
            self._count(event.edits)
            return {"event": "room", "edits": [describe(edit) for edit in event.edits]}
        if isinstance(event, Refocused):
            result = event.result
            invariants.check_window(result.before)
            self._count(result.plan.edits)
            chosen = [
                {"edit": describe(d.edit), "score": round(d.score, 6), "cost": d.cost, "reason": d.reason}
                for d in result.plan.decisions
                if d.chosen
            ]
            return {"event": "refocus", "step": event.step, "edits": chosen}
        return None

    def _count(self, edits: tuple[Edit, ...]) -> None:
        opened = sum(isinstance(edit, Expand) for edit in edits)
        self.counts["expansions"] += opened
        self.counts["collapses"] += len(edits) - opened

    def _check(self) -> None:
        session = self._session
        if session is None:
            return
        window, snapshot = session.window, session.snapshot
        self.counts["steps"] += 1
        invariants.check_window(window)
        if snapshot.blocks != window.timeline.blocks:
            raise InvariantError(
                f"tree: the memory has {snapshot.blocks} blocks, the window's timeline {window.timeline.blocks}"
            )
        gists = {}
        # The newest node of each level is the one that could be missing.
        for lod in range(1, window.timeline.levels + 1) if session.bundle.gists is not None else ():
            nodes = window.timeline.blocks // node_blocks(lod, 0)[1]
            gists[lod] = nodes
            if window.timeline.holds_denied(lod, nodes - 1):
                continue  # not for this reader to look at
            newest = snapshot.gists(lod, nodes - 1, nodes)
            if not np.isfinite(newest).all() or not newest.any():
                raise InvariantError(f"tree: node ({lod}, {nodes - 1}) has no gist")
        if gists:
            invariants.tree(window.timeline, gists, before=self._timeline)
        elif not window.timeline.grows_from(self._timeline):
            raise InvariantError("tree: the timeline lost tokens")
        self._timeline = window.timeline
