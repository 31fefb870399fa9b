"""Ways to name a commit, as git has them: `HEAD` or `@` (the current branch), and `~N` and `^N` behind any name.

`main~2` is the commit before the one before `main`, along first parents; `main^` is `main~1`, `main^2` the second parent of a
merge, `main^0` the commit itself; `main^2~1` goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from megacontext.errors import UnknownReference
from megacontext.storage.commit import Commit

HEAD = ("HEAD", "@")
_STEPS = re.compile(r"(?:[~^]\d*)+$")
_STEP = re.compile(r"([~^])(\d*)")
# More digits than any history has commits.
_DIGITS = 9


class Revision(NamedTuple):
    """A name, and the steps back from it: `~` with how many, `^` with which parent."""

    name: str
    steps: tuple[tuple[str, int], ...]


def parse(reference: str, head: str) -> Revision:
    """What a reference says; the current branch is `head`. Raises UnknownReference for a number out of reason."""
    found = _STEPS.search(reference)
    name = reference[: found.start()] if found else reference
    steps = []
    for sign, digits in _STEP.findall(found[0]) if found else ():
        if len(digits) > _DIGITS:
            raise UnknownReference(f"{reference}: no commit is that far back")
        steps.append((sign, int(digits or 1)))
    return Revision(head if name in ("", *HEAD) and (name or steps) else name, tuple(steps))


def follow(commit: str, revision: Revision, load: Callable[[str], Commit]) -> str:
    """The commit that the steps lead to from `commit`. Raises UnknownReference where there is none."""
    at, way = commit, revision.name
    for sign, number in revision.steps:
        # A `^` chooses among parents once, a `~` takes the first one again and again.
        which, times = (number, 1 if number else 0) if sign == "^" else (1, number)
        for done in range(times):
            parents = load(at).parents
            if which > len(parents):
                back = f" after {done} steps" if done else ""
                counted = f"{len(parents)} parent{'s' * (len(parents) != 1)}"
                raise UnknownReference(
                    f"{way}{sign}{number} does not exist: {at[:12]}, reached{back} from {way}, has {counted}"
                )
            at = parents[which - 1]
        way += f"{sign}{number}"
    return at
