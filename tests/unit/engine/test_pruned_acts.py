"""What else can be done to a memory with pruned documents: all of it, and they stay pruned, and come back bit for bit."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_dead_documents import text

from megacontext.engine.bundle import Bundle
from megacontext.engine.erase import Eraser, remaker
from megacontext.engine.gist_builder import GistBuilder
from megacontext.engine.memory import Memory
from megacontext.engine.tokenizer_files import tokenizer_files
from megacontext.errors import ArchiveError, DetailPruned, Erased, MissingObject
from megacontext.storage import Repository, Snapshot
from megacontext.storage.export import prepare_export
from megacontext.storage.garbage import collect
from megacontext.storage.importing import Imported, import_archive
from megacontext.storage.stubs import Stubs
from megacontext.testing.tiny_bundle import save_tiny_bundle

pytestmark = pytest.mark.usefixtures("quick_disk")

TEXTS = {"page": text(1, 330), "poem": text(2, 500), "odd": "\ufffd odd\r\n" * 40, "end": text(4, 60)}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, loaded: Bundle) -> Path:
    """Small segments; `old` has an earlier version of the page, which is dead on `main`."""
    path, files = tmp_path_factory.mktemp("pruned") / "m.mc", tokenizer_files(loaded.tokenizer)
    tokenizer = loaded.base.tokenizer_fingerprint
    memory = Memory(Repository.create(path, tokenizer=tokenizer, tokenizer_files=files, segment_blocks=32), loaded)
    memory.add(text=text(9, 200), name="page")
    memory.branch("old")
    for name, each in TEXTS.items():
        memory.add(text=each, name=name)
    return path


@pytest.fixture
def memory(template: Path, tmp_path: Path, loaded: Bundle) -> Memory:
    return Memory(Repository.open(shutil.copytree(template, tmp_path / "m.mc")), loaded)


def texts(memory: Memory, reference: str | None = None) -> dict[str, str | None]:
    """By name; None where the raw tokens are pruned."""
    snapshot, found = memory.snapshot(reference), dict[str, str | None]()
    for record in snapshot.documents.live():
        try:
            found[record.source.removeprefix("text:")] = memory.text(record, snapshot)
        except DetailPruned:
            found[record.source.removeprefix("text:")] = None
    return found


def but(*pruned: str, **changed: str) -> dict[str, str | None]:
    return {name: None if name in pruned else each for name, each in (TEXTS | changed).items()}


def comes_back(memory: Memory, expected: dict[str, str | None]) -> None:
    assert memory.fsck().clean
    memory.restore()
    assert texts(memory) == expected and memory.fsck().clean and memory.snapshot().timeline().pruned == ()


def trace(root: Path, tokens: bytes) -> list[Path]:
    """Files below a folder that hold these bytes."""
    return [path for path in root.rglob("*") if path.is_file() and tokens in path.read_bytes()]


@pytest.mark.parametrize("removed", ["page", "poem"])
def test_repack_keeps_what_is_pruned(memory: Memory, removed: str) -> None:
    memory.prune("poem", "odd", "end")
    memory.remove(removed)
    gists = memory.snapshot().gists(1, 0, memory.snapshot().blocks)
    done = memory.repack(everything=True)
    now, expected = memory.snapshot(), but("poem", "odd", "end")
    del expected[removed]
    assert done.freed and texts(memory) == expected
    live = now.timeline().present(0, now.blocks)
    assert all(row.tobytes() in {each.tobytes() for each in gists} for row in now.gists_at(1, live))
    # Older commits read as before; what only they need is no garbage.
    collect(memory.repository.root, grace=0)
    comes_back(memory, {name: each for name, each in TEXTS.items() if name in expected})


@pytest.mark.parametrize("elsewhere", [False, True])
def test_erase_reaches_what_is_pruned(memory: Memory, tmp_path: Path, elsewhere: bool) -> None:
    root, folder = memory.repository.root, tmp_path / "away"
    memory.prune("poem", "odd", archive=folder if elsewhere else None)
    tokens = memory.repository.unpruned().snapshot().tokens(*memory.find_document("poem").span)[3].tobytes()
    assert trace(folder if elsewhere else root / "archive", tokens)
    eraser = Eraser(memory.repository, lambda: memory.tokenizer, lambda: (memory.bundle.base, memory.bundle.gists))
    outlook = eraser.outlook(["poem"])
    before = {path.name for path in folder.iterdir()} if elsewhere else set()
    receipt = eraser.erase(outlook, author="me")
    (poem,) = outlook.documents
    assert receipt["blocks"] >= poem.blocks and receipt["before"]["tokens"]["found"] > 0
    assert not any(receipt["after"][kind]["found"] for kind in ("tokens", "gists", "names", "texts"))
    assert not elsewhere or before - {path.name for path in folder.iterdir()}
    assert not trace(tmp_path, tokens)
    again = Memory(Repository.open(root), memory.bundle)
    expected = but("odd")
    del expected["poem"]
    assert texts(again) == expected and again.fsck().clean and not again.fsck().unreachable
    comes_back(again, {name: each for name, each in TEXTS.items() if name != "poem"})


def test_erase_of_another_document_leaves_what_is_pruned(memory: Memory) -> None:
    memory.prune("poem", "odd", "end")
    eraser = Eraser(memory.repository, lambda: memory.tokenizer, lambda: (memory.bundle.base, memory.bundle.gists))
    eraser.erase(eraser.outlook(["page"]), author="me")
    again = Memory(Repository.open(memory.repository.root), memory.bundle)
    assert texts(again) == {"poem": None, "odd": None, "end": None}
    comes_back(again, {name: TEXTS[name] for name in ("poem", "odd", "end")})


def test_what_is_not_at_hand_is_not_erased(memory: Memory, tmp_path: Path) -> None:
    memory.prune("poem", archive=tmp_path / "away")
    shutil.move(tmp_path / "away", tmp_path / "lost")
    eraser = Eraser(memory.repository, lambda: memory.tokenizer, lambda: (memory.bundle.base, memory.bundle.gists))
    with pytest.raises((MissingObject, DetailPruned), match="megacontext restore"):
        eraser.erase(eraser.outlook(["poem"]))
    assert texts(memory) == but("poem")


def test_merge_takes_pruned_documents_with_their_gists(memory: Memory) -> None:
    memory.prune("poem", "odd", "end")
    gists = memory.snapshot().gists_at(1, np.arange(*memory.find_document("poem").span))
    memory.checkout("old")
    memory.add(text="mine", name="mine")
    done = memory.merge("main")
    assert set(done.added) == {"text:poem", "text:odd", "text:end"} and texts(memory) == {
        **but("poem", "odd", "end"),
        "mine": "mine",
    }
    here = memory.snapshot().gists_at(1, np.arange(*memory.find_document("poem").span))
    np.testing.assert_array_equal(here, gists)
    memory.add(text=text(7, 400), name="later")
    assert texts(memory)["poem"] is None
    memory.remove("later")
    comes_back(memory, {**TEXTS, "mine": "mine"})


def test_another_gistnet_reads_archives_and_says_what_it_cannot(memory: Memory, tmp_path: Path) -> None:
    from megacontext.engine.bundle import load_bundle

    other = Memory(memory.repository, load_bundle(save_tiny_bundle(tmp_path / "other", seed=5)))
    memory.prune("poem", archive=tmp_path / "away")
    shutil.move(tmp_path / "away", tmp_path / "lost")
    with pytest.raises(DetailPruned, match="restore --archive FOLDER text:poem"):
        other.regist()
    shutil.move(tmp_path / "lost", tmp_path / "away")
    receipt, spec = other.regist(), other.models.gists
    assert receipt.archived == memory.find_document("poem").blocks and texts(memory) == but("poem") and spec is not None
    made = memory.snapshot().gists(1, 0, receipt.blocks, spec.fingerprint)
    memory.restore()
    other.remove_layer(spec.fingerprint)
    other.regist()
    np.testing.assert_array_equal(memory.snapshot().gists(1, 0, receipt.blocks, spec.fingerprint), made)


def test_another_tokenizer_goes_on_without_what_it_cannot_read(memory: Memory, tmp_path: Path) -> None:
    model = save_tiny_bundle(tmp_path / "other", "qwen3", seed=2, pairs=["al", "ph"])
    memory.prune("poem", "odd", archive=tmp_path / "away")
    shutil.move(tmp_path / "away", tmp_path / "lost")
    with pytest.raises(DetailPruned, match="--skip-pruned"):
        memory.convert(tmp_path / "new", model=model)
    done = memory.convert(tmp_path / "new", model=model, skip_pruned=True)
    assert set(done.branches[0].skipped) == {"text:poem", "text:odd"} and done.lossless
    assert texts(Memory.open(tmp_path / "new")) == {name: TEXTS[name] for name in ("page", "end")}
    shutil.move(tmp_path / "lost", tmp_path / "away")
    assert memory.convert(tmp_path / "new", model=model).lossless
    assert texts(Memory.open(tmp_path / "new")) == TEXTS and texts(memory) == but("poem", "odd")


def exported(memory: Memory, without_pruned: bool = False) -> bytes:
    made = prepare_export(memory.repository, branches="all", history=True, without_pruned=without_pruned)
    data = b"".join(bytes(part) for part in made.parts())
    assert len(data) == made.size
    return data


def imported(data: bytes, path: Path, prefix: str = "", **options: Any) -> Imported:
    return import_archive(io.BytesIO(data), path, prefix=prefix, **options)


def test_an_export_carries_what_is_pruned(memory: Memory, tmp_path: Path) -> None:
    before = exported(memory)
    memory.prune("poem", "odd", "end")
    data, root = exported(memory), tmp_path / "new"
    done = imported(data, root)
    again = Memory(Repository.open(root), memory.bundle)
    assert done.pruned > 0 and done.left_out == 0 and texts(again) == but("poem", "odd", "end")
    assert again.snapshot().timeline() == memory.snapshot().timeline()
    assert exported(again) == data
    comes_back(again, dict(TEXTS))
    assert exported(again) == before
    # Into a memory in which it is not pruned it changes nothing there.
    whole = Memory(Repository.open(shutil.copytree(root, tmp_path / "whole")), memory.bundle)
    assert imported(data, tmp_path / "whole", "other").new == 0
    assert texts(whole) == TEXTS and texts(whole, "other/main") == TEXTS and whole.fsck().clean


def test_an_export_without_what_is_pruned(memory: Memory, tmp_path: Path) -> None:
    memory.prune("poem", "odd", "end")
    data, root = exported(memory, without_pruned=True), tmp_path / "new"
    tokens = memory.repository.unpruned().snapshot().tokens(*memory.find_document("poem").span)[3].tobytes()
    assert tokens not in data and tokens in exported(memory)
    done = imported(data, root)
    again = Memory(Repository.open(root), memory.bundle)
    assert done.left_out > 0 and done.pruned == 0 and texts(again) == but("poem", "odd", "end") and again.fsck().clean
    with pytest.raises(DetailPruned, match="restore --archive"):
        again.add(text="behind", name="behind")
    with pytest.raises(MissingObject, match="restore --archive"):
        again.restore()
    assert exported(again, without_pruned=True).count(tokens) == 0
    again.restore(archive=memory.repository.root / "archive")
    assert texts(again) == TEXTS and again.fsck().clean and again.snapshot().timeline().pruned == ()


def test_a_stub_that_tells_other_tokens_is_refused(memory: Memory, tmp_path: Path) -> None:
    """Nobody can tell by the name of an object whether a stub of it is true; where the memory knows better, it is not taken."""
    memory.prune("poem")
    data, mine = exported(memory, without_pruned=True), shutil.copytree(memory.repository.root, tmp_path / "mine")
    stubs = Stubs(memory.repository.root)
    loaded = [stub for name in sorted(stubs.names()) if (stub := stubs.load(name)) is not None]
    # One that has rows of other documents.
    stub = next(each for each in loaded if each.arrays and each.arrays["ids"].any())
    stub.arrays["ids"][np.flatnonzero(stub.arrays["ids"].any(axis=1))[0]] += 1
    stubs.write(stub)
    forged = exported(memory, without_pruned=True)
    imported(data, mine, "true")
    with pytest.raises(ArchiveError, match="other tokens"):
        imported(forged, mine, "forged")
    assert "forged/main" not in Repository.open(mine).branches() and Repository.open(mine).fsck().clean


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("at_hand", [False, True])
def test_an_import_without_what_was_erased(memory: Memory, tmp_path: Path, pruned: bool, at_hand: bool) -> None:
    root = Path(shutil.copytree(memory.repository.root, tmp_path / "copy"))
    memory.tag("then")
    if pruned:
        memory.prune("poem", "odd")
    tokens = memory.repository.unpruned().snapshot().tokens(*memory.find_document("poem").span)[3].tobytes()
    gists = memory.snapshot().gists_at(1, np.arange(*memory.find_document("poem").span))
    data, copy = exported(memory), Memory(Repository.open(root), memory.bundle)
    eraser = Eraser(copy.repository, lambda: copy.tokenizer, lambda: (copy.bundle.base, copy.bundle.gists))
    eraser.erase(eraser.outlook(["poem"]))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and "locks" not in path.parts}
    with pytest.raises(Erased, match="--skip-erased"):
        imported(data, root, "back")
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and "locks" not in path.parts} == before
    models, options = memory.bundle, dict[str, Any](skip_erased=True)
    options["remake"] = lambda spec: remaker(models.base, models.gists if at_hand else None, spec)
    done = imported(data, root, "back", **options)
    assert done.skipped == ("text:poem",) and bool(done.dropped) != at_hand
    again = Memory(Repository.open(root), memory.bundle)
    # What is pruned there is in its place here, and that counts.
    expected = {name: each for name, each in TEXTS.items() if name != "poem"}
    assert texts(again, "back/main") == texts(again, "back/then") == expected and again.fsck().clean
    assert not trace(root, tokens) and not any(trace(root, row.tobytes()) for row in gists if row.any())
    # What a rebuild of all levels makes of what is left.
    if at_hand:
        check_gists(again.repository.unpruned().snapshot("back/main"), memory.bundle)
    comes_back(again, {name: each for name, each in TEXTS.items() if name != "poem"})
    assert imported(data, root, "back", **options).new == 0


def check_gists(snapshot: Snapshot, bundle: Bundle) -> None:
    """Every gist of a live node is the one that a rebuild of all levels makes."""
    assert bundle.gists is not None
    timeline = snapshot.timeline()
    for _, gists in GistBuilder(bundle.base, bundle.gists).rebuild(snapshot):
        for lod, (start, rows) in gists.items():
            index = np.arange(start, start + len(rows))
            alive = ~timeline.dead_mask(np.full(len(rows), lod, np.int8), index)
            np.testing.assert_array_equal(snapshot.gists(lod, start, start + len(rows))[alive], rows[alive])


def test_the_collector_takes_stubs_and_archived_copies_that_nothing_needs(memory: Memory, tmp_path: Path) -> None:
    root, away = memory.repository.root, tmp_path / "away"
    memory.prune("end")
    memory.branch("more")
    memory.checkout("more")
    memory.add(text=text(8, 900), name="much")
    memory.prune("much")
    memory.checkout("main")
    memory.repository.delete_branch("more")
    found = collect(root, grace=0, dry_run=True)
    assert found.pruned > 0 and found.pruned_bytes > 0 and not found.outside
    assert collect(root, dry_run=True).pruned == 0  # younger than the grace period
    done = collect(root, grace=0)
    assert (done.pruned, done.pruned_bytes) == (found.pruned, found.pruned_bytes) and collect(root, grace=0).pruned == 0
    assert texts(memory) == but("end")
    memory.branch("again")
    memory.checkout("again")
    memory.add(text=text(8, 900), name="much")
    memory.prune("much", archive=away)
    memory.checkout("main")
    memory.repository.delete_branch("again")
    kept = set(away.iterdir())
    assert set(map(Path, collect(root, grace=0).outside)) == kept and kept == set(away.iterdir())
    comes_back(memory, dict(TEXTS))
