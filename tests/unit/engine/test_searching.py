"""Searching a memory in every mode: hits come from the record, filters narrow them, text needs no tensor library."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megacontext.engine.bundle import Bundle
from megacontext.engine.gist_query import encoded, entries_of
from megacontext.engine.memory import Memory
from megacontext.engine.searching import MODES
from megacontext.errors import ConfigError, LayerBehind, UnknownReference
from megacontext.index import gists
from megacontext.storage import Repository
from megacontext.testing.tiny_bundle import save_tiny_bundle

ZEBRAS = "Zebras graze.\n" * 40


def block_text(memory: Memory, block: int) -> str:
    return memory.text_of_blocks(memory.snapshot(), block, block + 1)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_finds_a_block_by_what_it_says(memory: Memory, mode: str) -> None:
    memory.add(text=ZEBRAS, name="zebras", tags=["animals"])
    snapshot = memory.snapshot()
    target = snapshot.document_of(snapshot.blocks - 3).start_block + 2
    hits = memory.search(block_text(memory, target), 40, mode=mode)
    assert target in [hit.block for hit in hits]
    assert hits[0].source == "text:zebras" or mode == "gists"  # whose random GistNet tells little
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert hit.text == block_text(memory, hit.block) and hit.source == snapshot.document_of(hit.block).source
        assert bool(hit.ranks) == (mode == "hybrid")


@pytest.mark.parametrize("mode", MODES)
def test_filters_and_old_versions_hold_in_every_mode(memory: Memory, mode: str) -> None:
    memory.add(text=ZEBRAS, name="zebras", tags=["animals"])
    before = memory.repository.resolve()
    memory.add(text=ZEBRAS.replace("Zebras", "Gnus"), name="zebras", tags=["animals"])
    (document,) = [each for each in memory.snapshot().documents.live() if each.source == "text:zebras"]
    old = {hit.block for hit in memory.search("Zebras graze", 500, before, mode=mode, source="zebras")}
    new = {hit.block for hit in memory.search("Zebras graze", 500, mode=mode, tags=["animals"])}
    assert old and new <= set(range(*document.span)) and not old & new
    for nothing in ({"source": "*.py"}, {"tags": ["plants"]}, {"until": 5.0}, {"allowed": lambda blocks: blocks < 0}):
        assert memory.search("Zebras graze", mode=mode, **nothing) == []
    assert memory.search("graze", mode=mode, since=document.ingested_at, until=document.ingested_at + 1e6)


@pytest.mark.parametrize("mode", MODES)
def test_a_denied_reader_finds_nothing_denied(memory: Memory, mode: str) -> None:
    memory.add(text=ZEBRAS, name="zebras", labels=["secret"])
    reader = Memory(Repository.open(memory.repository.root, deny=["secret"]), memory.models)
    hits = reader.search("Zebras graze", 500, mode=mode)
    assert not any("Zebras" in hit.text or hit.source == "text:zebras" for hit in hits)
    assert any(hit.source == "text:zebras" for hit in memory.search("Zebras graze", 500, mode=mode))


@pytest.mark.parametrize("mode", MODES)
def test_branches_are_apart(memory: Memory, mode: str) -> None:
    memory.branch("other")
    memory.add(text=ZEBRAS, name="zebras")
    assert not any("Zebras" in hit.text for hit in memory.search("Zebras graze", 500, "other", mode=mode))


def test_key_value_gists_find_the_block_that_holds_the_query(kv_memory: Memory) -> None:
    snapshot = kv_memory.snapshot()
    models = kv_memory.models
    assert models.gists is not None
    layer, entries = snapshot.layer(), entries_of(models.gists.layout)
    for block in (3, 40, snapshot.blocks - 2):
        ids = snapshot.tokens(block, block + 1)[0][: snapshot.fill(block, block + 1)[0]].astype(np.int64)
        query = encoded(models, ids)
        np.testing.assert_allclose(np.linalg.norm(query, axis=1), 1, rtol=1e-5)
        found = gists.search(snapshot, layer, query, entries, 1, config=gists.GistSearchConfig(beam=None)).hits
        assert found.blocks.tolist() == [block] and found.scores[0] > 0.999
    assert kv_memory.search("function_3", 3, mode="gists")


def test_what_there_is_no_gistnet_for(tmp_path: Path, memory: Memory) -> None:
    base = save_tiny_bundle(tmp_path / "plain", gistnet=False)
    plain = Memory.create(tmp_path / "plain.mc", model=base)
    plain.add(text=ZEBRAS, name="zebras")
    with pytest.raises(ConfigError, match="search by text"):
        plain.search("Zebras", mode="gists")
    assert set(plain.search("Zebras", mode="hybrid")[0].ranks) == {"text", "tokens"}
    behind = Memory(plain.repository, memory.models)
    with pytest.raises(LayerBehind, match="regist"):
        behind.search("Zebras", mode="gists")


def test_empty_queries_and_wrong_ones(memory: Memory) -> None:
    for mode in MODES:
        assert memory.search("", mode=mode) == []
    with pytest.raises(ConfigError, match="text, tokens, gists, hybrid"):
        memory.search("x", mode="psychic")  # type: ignore[arg-type]
    with pytest.raises(UnknownReference):
        memory.search("x", reference="nowhere")


def test_text_and_tokens_need_no_tensor_library(filled: Path, tmp_path: Path) -> None:
    root = shutil.copytree(filled, tmp_path / "m.mc")
    script = (
        "import sys, megacontext\n"
        "memory = megacontext.open(sys.argv[1], create=False)\n"
        "assert memory.search('function_7') and memory.search('function_7', mode='tokens', source='functions')\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(root)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_hybrid_ranks_are_places_in_the_rankings(memory: Memory, loaded: Bundle) -> None:
    memory.add(text=ZEBRAS, name="zebras")
    hits = memory.search("Zebras graze", 5, mode="hybrid")
    for mode in MODES[:-1]:
        blocks = [hit.block for hit in memory.search("Zebras graze", 50, mode=mode)]
        for hit in hits:
            assert hit.ranks.get(mode, 0) == (blocks.index(hit.block) + 1 if hit.block in blocks else 0)
    expected = [sum(1 / (60 + place) for place in hit.ranks.values()) for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], expected, rtol=1e-5)
