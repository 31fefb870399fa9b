"""Merge bases over random histories, against the definition; and what a search for them reads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megacontext.storage.ancestry import is_ancestor, merge_bases
from megacontext.storage.commit import Commit

History = dict[str, Commit]


def make(parents: dict[str, tuple[str, ...]], times: dict[str, float]) -> History:
    return {name: Commit(tokens="", documents="", parents=of, time=times[name]) for name, of in parents.items()}


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Commits, each with up to three earlier ones as parents; clocks that may run backwards."""
    count = draw(st.integers(1, 14))
    parents: dict[str, tuple[str, ...]] = {}
    for number in range(count):
        chosen = draw(st.lists(st.integers(0, number - 1), max_size=3, unique=True)) if number else []
        parents[f"c{number:02}"] = tuple(f"c{each:02}" for each in chosen)
    clocks = {name: draw(st.integers(0, 6)) if draw(st.booleans()) else int(name[1:]) for name in parents}
    return make(parents, {name: float(time) for name, time in clocks.items()})


def past(history: History, name: str) -> set[str]:
    return {name}.union(*(past(history, parent) for parent in history[name].parents))


@given(histories(), st.data())
def test_bases_are_the_newest_common_ancestors(history: History, data: st.DataObject) -> None:
    left, right = (data.draw(st.sampled_from(sorted(history))) for _ in range(2))
    common = past(history, left) & past(history, right)
    best = {name for name in common if not any(name != other and name in past(history, other) for other in common)}
    found = merge_bases(history.__getitem__, left, right)
    assert set(found) == best and len(found) == len(best)
    assert is_ancestor(history.__getitem__, left, right) == (left in past(history, right))


def test_only_what_happened_since_is_read() -> None:
    trunk = {f"t{n:05}": (f"t{n - 1:05}",) if n else () for n in range(5000)}
    sides = {"a1": ("t04999",), "a2": ("a1",), "b1": ("t04999",)}
    names = [*trunk, *sides]
    history = make({**trunk, **sides}, {name: float(at) for at, name in enumerate(names)})
    read: set[str] = set()

    def load(name: str) -> Commit:
        read.add(name)
        return history[name]

    assert merge_bases(load, "a2", "b1") == ["t04999"]
    assert len(read) <= 6
