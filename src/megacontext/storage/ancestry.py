"""Where two histories part: the newest commits that both have in their past, over all parents.

The walk goes from newer to older commits and stops where everything left is in the past of what was found, so it reads
what happened since the histories parted and not what was before. Clocks may be wrong: times only say what is looked at
first, so a wrong one costs time and never the answer.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from megacontext.storage.commit import Commit

Load = Callable[[str], Commit]

_LEFT, _RIGHT, _BOTH, _PAST = 1, 2, 3, 4


def merge_bases(load: Load, left: str, right: str) -> list[str]:
    """The common ancestors of two commits that are no ancestors of another common one: one as a rule, more where
    histories were merged crosswise, none for unrelated ones. Newest first; of equal times by name."""
    walk = _Walk(load)
    walk.mark(left, _LEFT)
    walk.mark(right, _RIGHT)
    found = walk.common()
    if len(found) > 1:
        found = [name for name in found if not any(other != name and is_ancestor(load, name, other) for other in found)]
    return sorted(found, key=lambda name: (-load(name).time, name))


def is_ancestor(load: Load, old: str, new: str) -> bool:
    """Whether commit `old` is `new` or in its past. Reads the past of `new` where it is not."""
    todo, seen = [new], {new}
    while todo:
        name = todo.pop()
        if name == old:
            return True
        more = [each for each in load(name).parents if each not in seen]
        seen.update(more)
        todo += more
    return False


class _Walk:
    """From two commits into the past, each commit marked with the sides that reach it; `_PAST`: through a common one."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._marks: dict[str, int] = {}
        self._queue: list[tuple[float, str]] = []
        self._open = 0  # entries of the queue that are in nobody's common past, where something can still be found
        self._queued: set[str] = set()

    def mark(self, name: str, marks: int) -> None:
        """Adds marks to a commit; one whose marks are new is looked at (again)."""
        before = self._marks.get(name, 0)
        after = before | marks
        if after == before:
            return
        self._marks[name] = after
        if name in self._queued:
            self._open -= bool(after & _PAST) and not before & _PAST
            return
        self._queued.add(name)
        self._open += not after & _PAST
        heapq.heappush(self._queue, (-self._load(name).time, name))

    def common(self) -> list[str]:
        """All commits that both sides reach and that were not reached through another such commit."""
        while self._open:
            _, name = heapq.heappop(self._queue)
            self._queued.discard(name)
            marks = self._marks[name]
            self._open -= not marks & _PAST
            for parent in self._load(name).parents:
                self.mark(parent, marks | _PAST if marks & _BOTH == _BOTH else marks)
        return [name for name, marks in self._marks.items() if marks == _BOTH]
