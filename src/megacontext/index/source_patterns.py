"""Which sources a pattern names, as git names paths.

A pattern is a source as it is listed, a path or the end of one in whole names, a folder (which stands for everything below it;
with a `/` at its end it is nothing else), or has `*`, `?` or `[…]`, where `*` stands for `/` too.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

# Of so many sources close ones are looked for; more would take seconds.
_COMPARED = 5_000


def choose(sources: Iterable[str], pattern: str) -> list[str]:
    """The sources that a pattern names, in order: the one that is called so; else what is at that path or below it; else all
    that end so, or lie below a folder that does."""
    ranks = [(rank, source) for source in sources if (rank := _rank(source, pattern))]
    best = min((rank for rank, _ in ranks), default=0)
    return [source for rank, source in ranks if rank == best]


def fits(source: str, pattern: str) -> bool:
    """Whether a pattern may name a source, whatever others there are."""
    return _rank(source, pattern) > 0


def near(sources: Collection[str], pattern: str) -> list[str]:
    """At most three sources or folders that are called much like a pattern."""
    names: dict[str, str] = {}
    for source in list(sources)[:_COMPARED]:
        parts = _path(source).split("/")
        names.setdefault(source, source)
        for at, part in enumerate(parts):
            folder = at < len(parts) - 1
            whole = source[: len(source) - len("/".join(parts[at + 1 :]))] if folder else source
            names.setdefault(part + "/" * folder, whole)
            names.setdefault("/".join(parts[: at + 1]) + "/" * folder, whole)
    names.pop("/", None)
    close = next((found for cut in (0.6, 0.4) if (found := difflib.get_close_matches(pattern, names, n=6, cutoff=cut))), [])
    return list(dict.fromkeys(names[name] for name in close))[:3]


def hint(sources: Collection[str], pattern: str) -> str:
    """The end of a sentence that says that nothing fits: what was perhaps meant, or where to look."""
    if close := near(sources, pattern):
        return f"; did you mean {' or '.join(close)}?"
    return "; megacontext log lists what came in" if sources else ""


def _path(source: str) -> str:
    return source.partition(":")[2] or source


def _rank(source: str, pattern: str) -> int:
    """How directly a pattern names a source: 1 is best, 0 not at all."""
    if source == pattern:
        return 1
    path = _path(source)
    if any(mark in pattern for mark in "*?["):
        return 2 * any(fnmatchcase(*each) for each in ((source, pattern), (path, pattern), (path, "*/" + pattern)))
    only_below = pattern.endswith("/")
    name = pattern.rstrip("/").removeprefix("./")
    if not name:
        return 0
    if source.startswith(f"{name}/") or path.startswith(f"{name}/"):
        return 2
    if not only_below and path == name:
        return 2
    tail = "/" + name.lstrip("/")
    return 3 * (f"{tail}/" in path or (not only_below and path.endswith(tail)))
