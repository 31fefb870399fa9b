"""What people see of a memory out of which documents were taken: sessions, focus, explanations, listings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megacontext.core import invariants
from megacontext.engine.memory import Memory
from megacontext.engine.policies.table import PolicyName
from megacontext.errors import UnknownReference

POEM = "".join(f"The {n}th line of a poem about the sea, in which nothing happens.\n" for n in range(120))
RECIPE = "".join(f"Add {n} grams of flour and stir for {n} minutes.\n" for n in range(120))


@pytest.mark.parametrize(
    ("policy", "gone"),
    [
        ("lens", ["text:recipe"]),
        ("recency", ["text:poem"]),
        ("retrieval", ["functions", "text:poem"]),
        ("random", ["functions"]),
    ],
)
def test_a_session_never_meets_what_was_removed(memory: Memory, policy: PolicyName, gone: list[str]) -> None:
    memory.add(text=POEM, name="poem")
    memory.add(text=RECIPE, name="recipe")
    removed = set(memory.remove(*gone).removed)
    with memory.session(budget=256, policy=policy) as session:
        list(session.generate("line of a poem, stir, def function_3", max_new_tokens=12, stop_at_eos=False))
        invariants.check_window(session.window)
        timeline, snapshot = session.window.timeline, session.snapshot
        assert not timeline.dead_mask(session.window.lod, session.window.index).any()
        explained = session.explain()
        assert not removed & {entry.source for entry in explained}
        live = [record for record in snapshot.documents.live() if record.blocks]
        assert all(1 <= entry.sources <= len(live) for entry in explained)
        for record in live:
            assert not timeline.absent_mask(np.zeros(record.blocks, np.int8), np.arange(*record.span)).any()


def test_the_newest_tokens_of_a_session_are_live_ones(memory: Memory) -> None:
    memory.add(text=POEM, name="poem")
    memory.remove("text:poem")
    with memory.session(budget=256) as session:
        query = session.query()
        assert len(query) == 128
        text = memory.tokenizer.decode(query.tolist())
        assert "poem" not in text and memory.text(memory.find_document("functions")).endswith(text)


def test_generation_goes_on_when_nothing_is_left(memory: Memory) -> None:
    for record in memory.snapshot().documents.live():
        memory.remove(record.source)
    status = memory.status()
    assert (status.documents, status.tokens, status.dead) == (0, 0, status.blocks) and status.blocks > 0
    assert memory.search("function") == []
    with memory.session(budget=256) as session:
        assert len(session.window) == 0
        list(session.generate("once more", max_new_tokens=40, stop_at_eos=False))
        assert session.window.cost > 40
        invariants.check_window(session.window)


def test_listings_speak_of_what_lives(memory: Memory) -> None:
    memory.add(text=POEM, name="poem")
    memory.add(text=POEM + "One more line.\n", name="poem")
    before = memory.snapshot()
    assert (memory.status().documents, memory.find_document("poem").version) == (2, 2)
    assert memory.remove("poem", dry_run=True).removed == ("text:poem",) and memory.status().documents == 2
    memory.remove("poem")
    with pytest.raises(UnknownReference, match="older commits"):
        memory.find_document("text:poem")
    assert memory.diff(before.commit_name).removed == ("text:poem",)
    # Every version is still where it was.
    assert memory.text(memory.find_document("poem", before), before) == POEM + "One more line.\n"
    first = next(record for record in memory.snapshot().documents if record.source == "text:poem")
    assert memory.text(first) == POEM


def test_what_does_not_fit_is_told_before_a_model_is_needed(memory: Memory, tmp_path: Path) -> None:
    with pytest.raises(UnknownReference, match="did you mean"):
        memory.remove("text:function", dry_run=True)
    with pytest.raises(UnknownReference):
        memory.remove("text:function")
