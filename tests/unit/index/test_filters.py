"""Filters let pass the blocks of exactly the live documents that fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from index_kit import add_words

from megacontext.index.filters import Filters, both
from megacontext.storage import DocumentRecord, Repository


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("*.py", True),
        ("app.py", True),
        ("src/*", True),
        ("main/app.p?", True),
        ("file:project/src/main/app.py", True),
        ("file:*", True),
        ("*", True),
        ("pp.py", False),
        ("src", True),
        ("src/main/", True),
        ("sr", False),
        ("*.PY", False),
        ("text:*", False),
        ("", False),
    ],
)
def test_patterns_fit_a_source_or_its_end_by_whole_names(pattern: str, fits: bool) -> None:
    record = DocumentRecord(ordinal=0, source="file:project/src/main/app.py")
    assert Filters(source=pattern).fits(record) is fits


def test_blocks_of_documents_that_fit_all_filters(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "memory", created=0.0, segment_blocks=32)
    for number, tags in enumerate([("a",), ("a", "b"), (), ("b",)]):
        add_words(repository, np.ones(64 + number, np.uint32), source=f"text:{number}", at=100.0 * number, tags=tags)
    with repository.writer() as writer:
        writer.remove_document(next(repository.snapshot().documents.live()))
        writer.commit("", time=0.0)
    snapshot = repository.snapshot()
    blocks = np.arange(snapshot.blocks)
    owner = snapshot.documents_at(blocks)

    def passing(**what: object) -> set[int]:
        return set(owner[Filters(**what).allowed(snapshot)(blocks)].tolist())  # type: ignore[arg-type]

    assert passing(tags=("a",)) == {1}  # 0 was removed
    assert passing(tags=("b",)) == {1, 3}
    assert passing(tags=("a", "b")) == {1}
    assert passing(since=200.0) == {2, 3}
    assert passing(since=100.0, until=200.0) == {1}
    assert passing(source="text:3", tags=("a",)) == set()
    assert passing(source="[13]") == {1, 3}
    assert Filters(since=0.0) and not Filters()
    even = both([None, Filters(tags=("b",)).allowed(snapshot), lambda each: each % 2 == 0])
    assert even is not None and set((blocks[even(blocks)] % 2).tolist()) == {0}
    assert both([None, None]) is None
