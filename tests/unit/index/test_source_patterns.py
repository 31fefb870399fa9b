"""Patterns name sources as git's name paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacontext.index.source_patterns import choose, fits, hint, near

SOURCES = [
    "file:docs/a.md",
    "file:docs/deep/b.md",
    "file:lib/docs/c.md",
    "file:docs.md",
    "file:///there/me/docs/d.md",
    "text:docs/e",
    "stdin:",
]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("docs", [0, 1, 5]),
        ("docs/", [0, 1, 5]),
        ("file:docs/", [0, 1]),
        ("file:docs", [0, 1]),
        ("./docs", [0, 1, 5]),
        ("docs/deep", [1]),
        ("deep", [1]),
        ("lib/docs/", [2]),
        ("me/docs", [4]),
        ("/there/me", [4]),
        ("file:///there/me/docs/", [4]),
        ("file:///there/me/docs/d.md", [4]),
        ("d.md", [4]),
        ("docs.md", [3]),
        ("docs.md/", []),
        ("a.md", [0]),
        ("ocs/a.md", []),
        ("*.md", [0, 1, 2, 3, 4]),
        ("docs/*", [0, 1, 2, 4, 5]),
        ("stdin:", [6]),
        ("", []),
        ("/", []),
    ],
)
def test_what_a_pattern_names(pattern: str, found: list[int]) -> None:
    assert choose(SOURCES, pattern) == [SOURCES[at] for at in found]
    assert {source for source in SOURCES if fits(source, pattern)} >= {SOURCES[at] for at in found}


@given(st.sampled_from(SOURCES), st.data())
def test_a_source_is_named_by_itself_its_folders_and_its_ends(source: str, data: st.DataObject) -> None:
    assert choose(SOURCES, source) == [source]
    parts = source.partition(":")[2].split("/")
    start = data.draw(st.integers(0, len(parts) - 1))
    stop = data.draw(st.integers(start + 1, len(parts)))
    pattern = "/".join(parts[start:stop]) + "/" * (stop < len(parts))
    assert not pattern.strip("/") or fits(source, pattern)


def test_what_was_perhaps_meant() -> None:
    assert near(SOURCES, "dosc/")[0] == "file:docs/" and near(SOURCES, "a.mdd")[0] == "file:docs/a.md"
    assert near(SOURCES, "zzzzzz") == [] and hint([], "x") == ""
    assert "list" in hint(SOURCES, "zzzzzz") and "did you mean" in hint(SOURCES, "doc")
