"""What key/value gists keep, told in tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megacontext.core import BLOCK
from megacontext.engine.bundle import load_bundle
from megacontext.engine.kept import Kept, kept_tokens
from megacontext.engine.memory import Memory
from megacontext.engine.tokenizer_files import tokenizer_files
from megacontext.models.kv_gistnet import KeyValueGistNet
from megacontext.storage import Repository


def net_of(memory: Memory) -> KeyValueGistNet:
    assert isinstance(memory.models.gists, KeyValueGistNet)
    return memory.models.gists


def block_text(memory: Memory, each: Kept) -> list[str]:
    """Each token of a block (a byte, here) as text."""
    (ids,) = memory.snapshot().tokens(each.block, each.block + 1).tolist()
    return [memory.models.tokenizer.decode([token]) for token in ids]


def test_a_block_keeps_the_tokens_with_the_best_scores(kv_memory: Memory) -> None:
    net, base = net_of(kv_memory), kv_memory.models.base
    view = kv_memory.snapshot()
    for block in (0, 3, view.blocks - 1):
        ids, fill = view.tokens(block, block + 1), view.fill(block, block + 1)
        mask = torch.from_numpy(np.arange(BLOCK) < fill[:, None])
        tokens = torch.from_numpy(np.where(mask, ids, 0).astype(np.int64))
        with torch.no_grad():
            scores = net.scores(base.embed(tokens), tokens, mask).masked_fill(~mask, -torch.inf)[0]
        best = scores.topk(min(net.config.entries, int(fill[0])))
        kept = kv_memory.kept(1, block)
        assert {each.place for each in kept} == set(best.indices.tolist())
        assert [each.score for each in kept] == pytest.approx(best.values.tolist(), rel=1e-2)
        for each in kept:
            texts = block_text(kv_memory, each)
            assert (each.block, each.text) == (block, texts[each.place])
            assert each.before == (texts[each.place - 1] if each.place else "")
            assert each.source == "text:functions" and each.line >= 1


def test_what_rises_is_followed_down_to_its_block(kv_memory: Memory) -> None:
    """The stored entry of the node above is that of the block, bit for bit, and the best come first."""
    net = net_of(kv_memory)
    view, layer = kv_memory.snapshot(), kv_memory.snapshot().layer(net.fingerprint)
    for index in range(layer.count(2)):
        kept = kv_memory.kept(2, index)
        assert len(kept) == net.config.entries
        assert [each.score for each in kept] == sorted((each.score for each in kept), reverse=True)
        above = net.layout.unpack(torch.from_numpy(layer.gists(2, index, index + 1)[0].copy()))[0][0]
        for each in kept:
            assert each.block // BLOCK == index
            own = kv_memory.kept(1, each.block, view)
            assert (each.place, each.text, each.before) in [(one.place, one.text, one.before) for one in own]
            rank = sorted(one.place for one in own).index(each.place)
            key = net.layout.unpack(torch.from_numpy(layer.gists(1, each.block, each.block + 1)[0].copy()))[0][0, rank]
            assert any(torch.equal(key, other) for other in above)


def test_what_died_is_not_told(kv_memory: Memory) -> None:
    def told() -> set[str]:
        return {each.source for index in range(kv_memory.snapshot().blocks // BLOCK) for each in kv_memory.kept(2, index)}

    # More than a node of level 2, and something behind it.
    kv_memory.add(text="".join(chr(32 + 7 * at % 90) for at in range(2 * BLOCK * BLOCK)), name="second")
    kv_memory.add(text="other " * 300, name="third")
    assert "text:second" in told()
    kv_memory.remove("text:second")
    assert "text:second" not in told() and "text:functions" in told()


def test_a_session_explains_what_its_gists_keep(kv_memory: Memory) -> None:
    with kv_memory.session(budget=160) as session:
        session.append("def function_7(")
        session.refocus(unlimited=True)
        told = session.explain()
        assert any(each.kept for each in told if each.lod == 1) and any(each.kept for each in told if each.lod == 2)
        for each in told:
            assert bool(each.kept) == bool(each.lod)
            assert all(each.start <= kept.block * BLOCK < each.stop for kept in each.kept)
            assert [kept.to_json() for kept in each.kept] == each.to_json()["kept"]


def test_a_window_over_pruned_blocks_is_explained_without_what_they_said(tmp_path: Path, kv_bundle: Path) -> None:
    """Which token an entry is of stands in the raw tokens, and those are in the archive."""
    models = load_bundle(kv_bundle)
    tokenizer, files = models.base.tokenizer_fingerprint, tokenizer_files(models.tokenizer)
    # Small segments: the end of a branch, which is still written, is not pruned.
    repository = Repository.create(tmp_path / "m.mc", tokenizer=tokenizer, tokenizer_files=files, segment_blocks=32)
    memory = Memory(repository, models)
    for name, length in (("page", 40), ("poem", 50), ("end", 70)):
        memory.add(text="".join(chr(32 + 7 * at % 90) for at in range(length * BLOCK)), name=name)
    memory.prune("poem")
    ((first, last),) = memory.snapshot().timeline().pruned
    assert first < 2 * BLOCK < last
    assert memory.kept(1, first) == [] and memory.kept(1, first - 1)
    assert memory.kept(2, 0) and {each.source for each in memory.kept(2, 1)} == {"text:page"}
    with memory.session(budget=160) as session:
        session.append("def function_7(")
        session.refocus(unlimited=True)
        told = [each.block for entry in session.explain() for each in entry.kept]
        assert told and not any(first <= block < last for block in told)


def test_gists_that_are_no_keys_and_values_keep_no_tokens(memory: Memory, kv_memory: Memory) -> None:
    assert memory.kept(1, 0) == [] == kv_memory.kept(1, 10**6)
    with memory.session(budget=256) as session:
        session.append("x")
        assert not any(each.kept for each in session.explain())
    other = kept_tokens(memory.snapshot(), kv_memory.models, [(1, 0)], str)
    assert other == [[]], "the layer is not there"
