"""Pruned documents: their gists work on, their raw tokens are archived, and come back bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_dead_documents import BASE, NET, text

from megacontext.core import invariants
from megacontext.engine.bundle import Bundle
from megacontext.engine.gist_builder import GistBuilder
from megacontext.engine.ingest import IngestConfig, ingest
from megacontext.engine.memory import Memory, layer_spec
from megacontext.engine.prune import prune, restore
from megacontext.engine.sources import Source
from megacontext.engine.tokenizer_files import tokenizer_files
from megacontext.errors import CorruptObject, DetailPruned, MissingObject, UnknownReference
from megacontext.storage import Repository, Snapshot, audit
from megacontext.storage.garbage import collect


@pytest.fixture
def pruned_memory(tmp_path: Path, loaded: Bundle) -> Memory:
    """Small segments: a page, a poem that fills several of them, and a few words behind."""
    files = tokenizer_files(loaded.tokenizer)
    tokenizer = loaded.base.tokenizer_fingerprint
    memory = Memory(Repository.create(tmp_path / "m.mc", tokenizer=tokenizer, tokenizer_files=files, segment_blocks=32), loaded)
    for name, seed, words in (("page", 1, 330), ("poem", 2, 900), ("words", 3, 400), ("end", 4, 120)):
        memory.add(text=text(seed, words), name=name)
    return memory


def files_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "objects").rglob("*") if path.is_file()}


def test_what_is_pruned_is_shown_by_gists_and_comes_back(pruned_memory: Memory) -> None:
    memory, root = pruned_memory, pruned_memory.repository.root
    before, snapshot = files_of(root), memory.snapshot()
    poem = memory.find_document("poem")
    dry = memory.prune("poem", dry_run=True)
    assert files_of(root) == before and dry.dry_run
    done = memory.prune("poem", author="ada")
    assert (done.documents, done.blocks, done.kept) == (("text:poem",), poem.blocks, 0) and done.blocks == dry.blocks
    assert sum(map(len, files_of(root).values())) < sum(map(len, before.values()))
    now = memory.snapshot()
    assert now.timeline().pruned == (poem.span,) and now.commit == snapshot.commit
    with pytest.raises(DetailPruned, match="megacontext restore"):
        memory.text(memory.find_document("poem"))
    with pytest.raises(DetailPruned):
        now.tokens(*poem.span)
    for name, seed, words in (("page", 1, 330), ("words", 3, 400), ("end", 4, 120)):
        assert memory.text(memory.find_document(name)) == text(seed, words)
    every = np.arange(now.blocks)
    np.testing.assert_array_equal(now.fill_at(every), snapshot.fill_at(every))
    np.testing.assert_array_equal(now.documents_at(every), snapshot.documents_at(every))
    np.testing.assert_array_equal(now.gists(1, 0, now.blocks), snapshot.gists(1, 0, now.blocks))
    assert memory.fsck().clean
    hits = memory.search("alpha beta gamma delta", limit=50)
    assert hits and not any(hit.source == "text:poem" for hit in hits)
    memory.add(text=text(5, 100), name="later")
    assert memory.restore(author="ada").blocks == poem.blocks
    assert memory.text(memory.find_document("poem")) == text(2, 900)
    assert before.items() <= files_of(root).items() and memory.snapshot().timeline().pruned == ()
    assert not list((root / "archive").iterdir()) and not list((root / "pruned").iterdir())
    assert [(entry.act, entry.author) for entry in audit.read(root).entries] == [("prune", "ada"), ("restore", "ada")]
    assert any(hit.source == "text:poem" for hit in memory.search("alpha beta gamma delta", limit=50))
    assert memory.fsck().clean


@pytest.mark.parametrize("policy", ["lens", "recency", "retrieval", "random"])
def test_no_window_opens_what_is_pruned(pruned_memory: Memory, policy: str) -> None:
    memory = pruned_memory
    memory.search("alpha")  # an index from before
    memory.prune("poem", "end")
    with memory.session(budget=400, policy=policy) as session:  # type: ignore[arg-type]
        list(session.generate("alpha beta gamma delta epsilon", max_new_tokens=12, stop_at_eos=False))
        window = session.window
        invariants.check_window(window)
        raw = window.index[window.lod == 0]
        pruned = window.timeline.finest(raw)
        assert len(raw) and not pruned.any()
        assert session.explain()


def test_what_stays_is_not_said_to_be_pruned(pruned_memory: Memory) -> None:
    """The end of a branch stays while somebody writes there; a protected tag keeps all that it holds. Both are named, by a dry
    run too."""
    memory = pruned_memory
    memory.add(text=text(6, 20), name="last")
    memory.repository.create_tag("kept")
    memory.repository.refs.protect("kept")
    for dry_run in (True, False):
        none = memory.prune("poem", "last", dry_run=dry_run)
        assert (none.documents, none.blocks) == ((), 0) and none.kept > memory.find_document("poem").blocks
        assert list(none.keepers) == ["tag kept"] and "--unprotect kept" in none.keepers["tag kept"]
    memory.repository.refs.protect("kept", False)
    with memory.repository.writer():
        for dry_run in (True, False):
            some = memory.prune("poem", "last", dry_run=dry_run)
            assert some.documents == ("text:poem",) and list(some.keepers) == ["branch main"]
    assert memory.prune("last").documents == ("text:last",)


def test_the_end_of_a_branch_goes_and_the_branch_grows_on(pruned_memory: Memory) -> None:
    """What is in no commit yet is committed first; what is written behind pruned blocks is sealed with them, and they stay
    pruned, and come back."""
    memory, repository = pruned_memory, pruned_memory.repository
    with repository.writer(layer=layer_spec(memory.bundle)) as writer:
        builder = GistBuilder(memory.bundle.base, memory.bundle.gists)  # type: ignore[arg-type]
        writer.begin_document(source="text:unsettled")
        ids, fill = np.full((2, 32), 65, np.uint32), np.full(2, 32, np.uint8)
        writer.append_blocks(ids, fill, gists=builder.extend(writer.written_layer(), ids, fill))
        writer.end_document()
    dry = memory.prune("end", "unsettled", dry_run=True)
    done = memory.prune("end", "unsettled")
    assert (dry.documents, dry.blocks) == (done.documents, done.blocks) == (("text:end", "text:unsettled"), done.blocks)
    record = memory.find_document("end")
    assert done.blocks == record.blocks + 2 and done.kept == 0 and not done.keepers
    gone = memory.snapshot().timeline().pruned
    for name, words in (("more", 30), ("much", 900)):
        memory.add(text=text(ord(name[0]), words), name=name)
        assert memory.snapshot().timeline().pruned == gone and memory.fsck().clean
        with pytest.raises(DetailPruned):
            memory.text(memory.find_document("end"))
    # As the one process that reads it and the next one do.
    assert Memory(Repository.open(repository.root), memory.bundle).snapshot().timeline().pruned == gone
    collect(repository.root, grace=0)
    assert memory.restore().blocks == done.blocks
    assert memory.text(memory.find_document("end")) == text(4, 120) and memory.fsck().clean
    assert not list((repository.root / "archive").iterdir()) and not list((repository.root / "pruned").iterdir())


def test_one_document_comes_back_alone(pruned_memory: Memory) -> None:
    memory = pruned_memory
    memory.prune("page")
    memory.prune("poem", "words")
    blocks = {name: memory.find_document(name).blocks for name in ("page", "poem", "words")}
    assert memory.restore("poem").blocks == blocks["poem"]
    assert memory.text(memory.find_document("poem")) == text(2, 900) and memory.fsck().clean
    for name in ("page", "words"):
        with pytest.raises(DetailPruned):
            memory.text(memory.find_document(name))
    dry, files = memory.restore("words", "page", dry_run=True), files_of(memory.repository.root)
    assert dry.objects > 0 and dry.bytes > 0 and dry.documents == ("text:page", "text:words")
    assert files_of(memory.repository.root) == files
    done = memory.restore()
    assert (dry.blocks, dry.objects, dry.bytes) == (done.blocks, done.objects, done.bytes)
    assert memory.text(memory.find_document("page")) == text(1, 330) and memory.fsck().clean


def test_a_change_of_a_pruned_document_needs_none_of_it(pruned_memory: Memory) -> None:
    memory = pruned_memory
    memory.prune("poem")
    receipt = memory.add(text=text(2, 900) + " more", name="poem")
    assert receipt.updated == ("text:poem",) and receipt.reused <= 40
    assert memory.text(memory.find_document("poem")) == text(2, 900) + " more"
    assert memory.remove("page").removed == ("text:page",)
    assert memory.snapshot().timeline().pruned and memory.fsck().clean
    memory.restore()
    assert memory.fsck().clean


def test_archives_elsewhere_and_what_is_wrong_with_them(pruned_memory: Memory, tmp_path: Path) -> None:
    memory, away = pruned_memory, tmp_path / "away"
    memory.prune("poem", archive=away)
    assert memory.fsck().clean and not list((memory.repository.root / "archive").glob("*"))
    shutil.move(away, tmp_path / "moved")
    assert memory.fsck().clean
    with pytest.raises(MissingObject, match="--archive"):
        memory.restore()
    victim = sorted((tmp_path / "moved").iterdir())[-1]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptObject, match="differ from its name"):
        memory.restore(archive=tmp_path / "moved")
    shutil.move(tmp_path / "moved", away)
    assert [finding.kind for finding in memory.fsck().findings] == ["archive"]
    (away / victim.name).write_bytes(whole)
    memory.restore()
    assert memory.text(memory.find_document("poem")) == text(2, 900)


def test_protected_tags_and_ends_of_branches_stay(pruned_memory: Memory) -> None:
    memory = pruned_memory
    tagged = memory.repository.create_tag("keep")
    memory.repository.refs.protect("keep")
    memory.add(text=text(6, 900), name="free")
    assert memory.prune("poem").blocks == 0 and memory.prune("poem", dry_run=True).kept == memory.find_document("poem").blocks
    done = memory.prune("free")
    record = memory.find_document("free")
    assert done.blocks == record.blocks and done.kept == 0
    old = memory.snapshot(tagged)
    assert memory.text(memory.find_document("poem", old), old) == text(2, 900) and old.timeline().pruned == ()
    with memory.session(budget=400) as session:
        list(session.generate("alpha", max_new_tokens=5, stop_at_eos=False))
    assert memory.fsck().clean


def test_old_documents_go_by_their_time_in_every_commit(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "m.mc", segment_blocks=32)
    config, commits = IngestConfig(repack=False), []
    for name in "abcd":
        source = Source(uri=f"text:{name}", text=text(ord(name), 250), media_type="text/plain", tags=())
        commits.append(ingest(repository, BASE, NET, [source], config=config).commit)
    records = list(repository.snapshot().documents)
    done = prune(repository, before=records[2].ingested_at)
    assert done.documents == ("text:a", "text:b") and done.blocks == records[0].blocks + records[1].blocks
    for commit in commits:
        snapshot = repository.snapshot(commit)
        assert _pruned(snapshot) >= {0} and not _pruned(snapshot) & {2, 3}
    # Its end is in pages that are archived: nothing can follow it where they are not at hand.
    repository.create_branch("old", commits[1])
    shutil.move(repository.root / "archive", tmp_path / "away")
    with pytest.raises(DetailPruned, match="megacontext restore --archive"):
        Repository.open(repository.root).writer("old")
    shutil.move(tmp_path / "away", repository.root / "archive")
    with repository.writer("old") as writer:
        assert writer.blocks == records[0].blocks + records[1].blocks
    assert repository.fsck().clean
    restore(repository)
    assert repository.fsck().clean


def _pruned(snapshot: Snapshot) -> set[int]:
    timeline = snapshot.timeline()
    blocks = np.arange(snapshot.blocks)
    return set(snapshot.documents_at(blocks[timeline.finest(blocks) == 1]).tolist())


def test_what_fits_nothing_is_refused(pruned_memory: Memory) -> None:
    with pytest.raises(UnknownReference, match="no live document"):
        pruned_memory.prune("nothing")
    assert pruned_memory.restore().objects == 0
