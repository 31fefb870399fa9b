"""What a denied reader finds does not depend on what it is denied: neither hits nor scores tell of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from index_kit import WORDS, decode

from megacontext.index.fulltext import FullTextIndex
from megacontext.index.text import TextIndex
from megacontext.storage import Repository

BLOCKS = 100
SIZES = (50, 47, 3)


def memory(path: Path, ids: np.ndarray, spans: list[tuple[int, int]]) -> Repository:
    repository = Repository.create(path, created=1.0, segment_blocks=32)
    with repository.writer() as writer:
        for at, size in enumerate(SIZES):
            start = sum(SIZES[:at])
            writer.begin_document(source=f"document {at}", ingested_at=1.0)
            writer.append_blocks(ids[start : start + size])
            writer.end_document()
        writer.commit(time=1.0)
    for start, length in spans:
        repository.label(lambda _, labels, a=start, b=start + length: labels.add(["secret"], a, min(b, BLOCKS)))
    return repository


@settings(derandomize=True, deadline=None, max_examples=6)
@given(
    seed=st.integers(0, 999),
    spans=st.lists(st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 40)), min_size=1, max_size=3),
    query=st.lists(st.integers(0, len(WORDS) - 1), min_size=1, max_size=4),
)
def test_it_makes_no_difference_what_the_denied_blocks_hold(seed: int, spans: list[tuple[int, int]], query: list[int]) -> None:
    rng = np.random.default_rng(seed)
    one = rng.integers(0, len(WORDS), (BLOCKS, 32))
    denied = np.zeros(BLOCKS, bool)
    for start, length in spans:
        denied[start : start + length] = True
    other = np.where(denied[:, None], rng.choice(query, (BLOCKS, 32)), one)  # full of what is looked for
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, ids in (("one", one), ("other", other)):
            root = memory(Path(folder) / name, ids, spans).root
            tokens, text = FullTextIndex(root), TextIndex(root, decode)
            typed = " ".join(WORDS[word] for word in query)
            for reader in (Repository.open(root), Repository.open(root, deny=["secret"])):  # one index file for both
                view = reader.snapshot()
                hits = [tokens.search(view, query, 20), text.search(view, typed, 20)]
            assert not any(denied[each.blocks].any() for each in hits)
            found.append([(each.blocks.tolist(), each.scores.tolist()) for each in hits])
            tokens.close()
            text.close()
    assert found[0] == found[1]
