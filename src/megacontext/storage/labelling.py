"""Changing who carries which label on a branch. Its tokens, gists and records stay as they are."""

from __future__ import annotations

import time as clock
from collections.abc import Callable
from dataclasses import replace

from megacontext.storage.hold import BranchHold
from megacontext.storage.labels import Labels
from megacontext.storage.seal import Sealer
from megacontext.storage.snapshot import Snapshot


class Labelling(BranchHold):
    """Labels blocks and documents; get it from `Repository.label`."""

    def relabel(
        self,
        change: Callable[[Snapshot, Labels], Labels],
        *,
        message: str = "",
        author: str = "",
        time: float | None = None,
    ) -> str:
        """Makes a commit with the labels that `change` makes of the present ones, durably, and returns its name; the present
        commit's where it makes no difference. What the branch's journal holds is committed first."""
        if self._journal.records:
            self.commit("Settled before labels are changed", author)
        base = self._state.base
        labels = change(self.snapshot(), base.labels)
        try:
            sealer = Sealer(self._store, self._place.segment_blocks)
            commit = replace(
                base.commit,
                labels=sealer.labels(labels, base.labels, base.commit.labels),
                parents=(base.name,),
                author=author,
                time=clock.time() if time is None else time,
                message=message,
            )
            return self._publish(commit)
        except BaseException:
            self._store.discard()
            raise
