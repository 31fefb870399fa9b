"""Archives: what goes in comes out, in other tools too, and beside what is there already."""

from __future__ import annotations

import io
import json
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load
from storage_driver import OTHER, SPEC, Gister, add, create, ids_of, say

from megacontext.errors import BranchLocked, Erased, InvalidInput, ModelMismatch, UnknownReference
from megacontext.storage import Repository, audit
from megacontext.storage.erased import ErasedList, take_in
from megacontext.storage.export import prepare_export
from megacontext.storage.hashing import digest
from megacontext.storage.importing import Imported, import_archive
from megacontext.testing.content import content_of


def filled(path: Path) -> Repository:
    """History, tags, two branches, dead blocks, labels, an original, an open document, and writes that are in no commit."""
    repository, gister = create(path, tokenizer="tok", tokenizer_files={"tokenizer.json": b"{}", "b.txt": b"b"}), Gister()
    with repository.writer(layer=SPEC) as writer:
        add(writer, "a", 34, gister, last=9)
        writer.begin_document(source="raw", ingested_at=2.0, labels=("secret",))
        ids = ids_of("raw", 1)
        writer.append_blocks(ids, gists=gister.add(ids))
        writer.end_document(original=b"\xff raw")
        writer.commit("one", time=3.0)
        repository.create_tag("v1")
        repository.create_branch("side/x")
        writer.remove_document(repository.snapshot().documents[1])
        writer.commit("two", time=4.0)
        writer.begin_document(source="chat", open=True, ingested_at=2.0)
        say(writer, np.arange(50, dtype=np.uint32), gister)
    with repository.writer("side/x") as writer:
        add(writer, "side", 2)
        writer.commit("three", time=5.0)
    return repository


def packed(repository: Repository, **options: object) -> bytes:
    return b"".join(prepare_export(repository, **options).parts())  # type: ignore[arg-type]


def unpacked(data: bytes, path: Path, prefix: str = "") -> Imported:
    return import_archive(io.BytesIO(data), path, prefix=prefix)


def contents(repository: Repository) -> dict[str, object]:
    return {name: content_of(repository.snapshot(name)) for name in (*repository.branches(), *repository.tags())}


def files_of(root: Path) -> dict[str, bytes]:
    found = sorted(path for path in root.rglob("*") if path.is_file() and path.parent.name != "locks")
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return filled(tmp_path_factory.mktemp("archive") / "m")


@pytest.fixture(scope="module")
def archive(repository: Repository) -> bytes:
    """All branches with their history."""
    return packed(repository, branches="all", history=True)


def test_everything_comes_out_as_it_went_in(repository: Repository, archive: bytes, tmp_path: Path) -> None:
    done = unpacked(archive, tmp_path / "new")
    again = Repository.open(tmp_path / "new")
    assert again.branches() == repository.branches() and again.tags() == ["v1"] and again.head == "main"
    assert contents(again) == contents(repository)
    assert [name for name, _ in again.history()] == [name for name, _ in repository.history()]
    assert again.read_object(again.snapshot("v1").documents[1].original) == b"\xff raw"
    assert (again.root / "tokenizer/tokenizer.json").read_bytes() == b"{}"
    report = again.fsck()
    assert report.clean and report.unreachable == 0 and report.notes == ()
    assert (done.objects, done.new, done.branches["main"]) == (report.objects, report.objects, again.resolve("main"))
    with again.writer(layer=SPEC) as writer:
        writer.begin_document(source="chat", open=True)


def test_what_is_acknowledged_is_in_and_who_writes_is_told(tmp_path: Path) -> None:
    """The chat was in no commit before the export."""
    repository = filled(tmp_path / "m")
    assert repository.commit().document_count == 3
    packed(repository)
    assert repository.commit().document_count == 4
    assert content_of(repository.snapshot())["open"] == list(range(32, 50))
    with repository.writer("side/x") as writer:
        add(writer, "more", 1)
        assert prepare_export(repository, branches="main,side/x").behind == ("side/x",)
    assert prepare_export(repository, branches="side/x").behind == ()


def test_an_unfinished_document_can_still_be_resumed_after_an_export(tmp_path: Path) -> None:
    repository, gister = create(tmp_path / "m"), Gister()
    with repository.writer(layer=SPEC) as writer:
        add(writer, "a", 2, gister)
        writer.begin_document(source="long", text_hash="h")
        writer.append_blocks(ids_of("long", 3), gists=gister.add(ids_of("long", 3)))
    assert prepare_export(repository, history=True).manifest.branches == {"main": repository.resolve()}
    with repository.writer(layer=SPEC) as writer:
        assert writer.begin_document(source="long", text_hash="h").blocks == 3


def test_without_history_there_is_one_commit_with_the_same_content(repository: Repository, tmp_path: Path) -> None:
    done = unpacked(packed(repository), tmp_path / "one")
    again = Repository.open(tmp_path / "one")
    assert content_of(again.snapshot()) == content_of(repository.snapshot())
    (only,) = again.history()
    assert only[1].message == repository.commit().message and again.tags() == [] and again.branches() == ["main"]
    assert again.fsck().unreachable == 0 and again.fsck().clean
    assert done.objects < prepare_export(repository, history=True).manifest.objects


def test_a_tag_or_commit_can_be_exported(repository: Repository, tmp_path: Path) -> None:
    unpacked(packed(repository, at="v1"), tmp_path / "one")
    again = Repository.open(tmp_path / "one")
    assert content_of(again.snapshot()) == content_of(repository.snapshot("v1")) == content_of(again.snapshot("v1"))
    unpacked(packed(repository, at="side/x", history=True), tmp_path / "two")
    two = Repository.open(tmp_path / "two")
    assert two.branches() == ["side/x"] == [two.head] and two.tags() == ["v1"]
    with pytest.raises(UnknownReference, match="nope"):
        prepare_export(repository, at="nope")
    with pytest.raises(UnknownReference, match="nope"):
        prepare_export(repository, branches="main,nope")
    with pytest.raises(InvalidInput, match="not both"):
        prepare_export(repository, at="main", branches="all")


def test_equal_contents_give_equal_archives(repository: Repository, archive: bytes, tmp_path: Path) -> None:
    unpacked(archive, tmp_path / "new")
    assert packed(Repository.open(tmp_path / "new"), branches="all", history=True) == archive
    assert len(archive) == prepare_export(repository, branches="all", history=True).size


def test_other_tools_read_it(repository: Repository, archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(archive)
    done = subprocess.run(["tar", "-xvf", "a.tar"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["kind"], manifest["version"], manifest["head"]) == ("megacontext-archive", 1, "main")
    listed = [line.split() for line in (tmp_path / "objects.txt").read_text().splitlines()]
    assert len(listed) == manifest["objects"] and sum(int(size) for _, size, _ in listed) == manifest["object_bytes"]
    for name, size, kind in listed:
        data = (tmp_path / "objects" / name[:2] / name).read_bytes()
        assert digest(data) == name and len(data) == int(size)
        if kind == "tokens":
            assert load(data)["ids"].shape[1] == 32
    assert {kind for _, _, kind in listed} >= {"commit", "tokens", "gists", "dead", "labels", "original", "documents"}


def test_progress_and_flat_memory(tmp_path: Path) -> None:
    """Neither side holds more than an object or so, whatever the archive's size."""
    repository = Repository.create(tmp_path / "m")
    with repository.writer() as writer:
        for number in range(12):
            writer.begin_document(source=f"s{number}")
            writer.append_blocks(np.random.default_rng(number).integers(0, 50_000, (8192, 32), dtype=np.uint32))
            writer.end_document()
            writer.commit(str(number))
    seen: list[tuple[int, int]] = []
    tracemalloc.start()
    try:
        with open(tmp_path / "a.tar", "wb") as file:
            for part in prepare_export(repository).parts(lambda done, total: seen.append((done, total))):
                file.write(part)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20 < (tmp_path / "a.tar").stat().st_size // 3
        tracemalloc.reset_peak()
        with open(tmp_path / "a.tar", "rb") as file:
            import_archive(file, tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
        # fsck's walk keeps the last objects that it parsed.
        assert tracemalloc.get_traced_memory()[1] < (tmp_path / "a.tar").stat().st_size * 1.2
    finally:
        tracemalloc.stop()
    total = seen[0][1]
    assert all(each == total for _, each in seen) and [done for done, _ in seen].count(total) == 2


# -- into a memory that exists -----------------------------------------------------------------


def host(path: Path, **options: object) -> Repository:
    repository = create(path, **{"tokenizer": "tok", **options})
    with repository.writer(layer=OTHER) as writer:
        add(writer, "mine", 3, Gister(OTHER))
        writer.commit("mine", time=2.0)
    return repository


def test_refs_come_under_a_name_and_nothing_else_changes(repository: Repository, archive: bytes, tmp_path: Path) -> None:
    mine = host(tmp_path / "mine")
    before = content_of(mine.snapshot())
    done = unpacked(archive, mine.root, "theirs")
    assert mine.branches() == ["main", "theirs/main", "theirs/side/x"] and mine.tags() == ["theirs/v1"]
    assert set(done.branches) == {"theirs/main", "theirs/side/x"} and done.new > 0
    assert content_of(mine.snapshot()) == before and mine.head == "main"
    assert content_of(mine.snapshot("theirs/main")) == content_of(repository.snapshot())
    assert mine.fsck().clean and mine.fsck().unreachable == 0
    again = unpacked(archive, mine.root, "theirs")
    assert again.new == 0 and again.branches == done.branches
    mine.create_branch("new/main")
    with pytest.raises(InvalidInput, match="new/main"):
        unpacked(archive, mine.root, "new")
    assert "new/side/x" not in mine.branches()
    with pytest.raises(InvalidInput, match="--as"):
        unpacked(archive, mine.root)
    with pytest.raises(InvalidInput, match="cannot name"):
        unpacked(archive, mine.root, "../up")


def test_what_does_not_belong_is_refused(archive: bytes, tmp_path: Path) -> None:
    other = host(tmp_path / "other", tokenizer="another")
    with pytest.raises(ModelMismatch, match="tokenizer"):
        unpacked(archive, other.root, "x")
    longer = Repository.create(tmp_path / "longer", tokenizer="tok")
    with pytest.raises(ModelMismatch, match="segments"):
        unpacked(archive, longer.root, "x")
    with pytest.raises(InvalidInput, match="no memory"):
        unpacked(archive, tmp_path / "none", "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(InvalidInput, match="other files"):
        unpacked(archive, tmp_path / "full")
    assert files_of(tmp_path / "full") == {"file": b"mine"}


def test_one_import_at_a_time(archive: bytes, tmp_path: Path) -> None:
    mine = host(tmp_path / "mine")

    class Nested(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() == 2048:
                with pytest.raises(BranchLocked):
                    unpacked(archive, mine.root, "second")
            return super().read(size)

    import_archive(Nested(archive), mine.root, prefix="first")
    assert "first/main" in mine.branches() and "second/main" not in mine.branches()


def test_what_was_erased_does_not_come_back_and_the_list_travels(archive: bytes, tmp_path: Path) -> None:
    mine = host(tmp_path / "mine")
    take_in(mine.root, ErasedList().with_erased(["side"], []))
    with pytest.raises(Erased, match="side"):
        unpacked(archive, mine.root, "theirs")
    assert mine.branches() == ["main"]
    listed = packed(mine)
    assert b"side" not in listed
    unpacked(listed, tmp_path / "new")
    with pytest.raises(Erased, match="side"):
        unpacked(archive, tmp_path / "new", "theirs")
    third = host(tmp_path / "third")
    unpacked(archive, third.root, "theirs")
    with pytest.raises(Erased, match="mine"):
        take_in(third.root, ErasedList().with_erased(["mine"], []))
        unpacked(listed, third.root, "more")


def test_an_import_is_in_the_audit_log(archive: bytes, tmp_path: Path) -> None:
    unpacked(archive, tmp_path / "new")
    (entry,) = audit.read(tmp_path / "new").entries
    assert entry.act == "import" and entry.details["refs"] == 3
