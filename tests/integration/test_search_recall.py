"""How well each search finds the block that a piece of text came from, with the checkpoint that ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import megacontext
from megacontext.engine.gist_query import encoded, entries_of
from megacontext.index import gists
from megacontext.index.gists import GistSearchConfig

SOURCES = ("core", "index")
QUERIES = 40


@pytest.mark.slow
def test_recall_of_gists_beside_reading_all_of_them_and_bm25(
    tmp_path: Path, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    package = Path(megacontext.__file__).parent
    memory = megacontext.init(tmp_path / "m.mc")
    memory.add(*(package / name for name in SOURCES))
    snapshot, models = memory.snapshot(), memory.models
    assert models.gists is not None
    layer, entries = snapshot.layer(), entries_of(models.gists.layout)
    owner = snapshot.documents_at(np.arange(snapshot.blocks))
    whole = np.flatnonzero((snapshot.fill(0, snapshot.blocks)[:-1] == 32) & (owner[:-1] == owner[1:]))
    wanted = np.random.default_rng(0).choice(whole, QUERIES, replace=False).tolist()

    def recall(first: int, tokens: int) -> dict[str, float]:
        """Of blocks: whether `tokens` tokens from place `first` on, maybe reaching into the next block, find them in 10."""
        found = dict.fromkeys(("text", "tokens", "every gist", "as it comes", "beam of 32", "beam of 8"), 0)
        for block in wanted:
            ids = snapshot.tokens(block, block + 2).ravel()[first : first + tokens].astype(np.int64)
            query = encoded(models, ids)
            answers = {
                "text": memory.text_index.search(snapshot, memory.tokenizer.decode(ids.tolist()), 10),
                "tokens": memory.index.search(snapshot, ids, 10),
            }
            beams = {"every gist": None, "as it comes": GistSearchConfig.beam, "beam of 32": 32, "beam of 8": 8}
            for name, beam in beams.items():
                config = GistSearchConfig(beam=beam)
                answers[name] = gists.search(snapshot, layer, query, entries, 10, config=config).hits
            for name, hits in answers.items():
                found[name] += block in hits.blocks
        return {name: count / QUERIES for name, count in found.items()}

    half, shifted = recall(10, 12), recall(8, 32)
    with capsys.disabled():
        print(f"\nrecall@10, {snapshot.blocks} blocks, {QUERIES} queries: 12 tokens {half}; a window 8 tokens on {shifted}")
    record_property("recall", {"12 tokens": half, "shifted": shifted})
    # A memory of this size is looked at whole.
    assert half["as it comes"] == half["every gist"] and shifted["as it comes"] == shifted["every gist"]
    # Gists are enough to tell blocks apart, and what is above them leads to some; BM25 is the better search.
    assert shifted["every gist"] >= 0.8 and half["every gist"] >= 0.5
    assert half["tokens"] >= 0.8 and half["text"] >= 0.7
    assert half["every gist"] >= half["beam of 32"] >= half["beam of 8"] > 10 / snapshot.blocks
