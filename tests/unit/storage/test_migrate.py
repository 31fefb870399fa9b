"""A memory of format 1, as it was written then: read as it is, written after a migration that can be taken back."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from storage_driver import SPEC, add
from test_crash import Disk

from megacontext.errors import BranchLocked, FormatVersionError, MemoryNotFound
from megacontext.storage import Repository
from megacontext.storage.export import prepare_export
from megacontext.storage.files import FileLock
from megacontext.storage.format import FORMAT
from megacontext.storage.hashing import sealed, unsealed
from megacontext.storage.importing import import_archive
from megacontext.storage.migrate import STEPS, migrate
from megacontext.testing.content import content_of

DATA = Path(__file__).with_name("data")
INFO = "megacontext.json"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Two branches, a tag, an original, a gist layer, an open conversation that is partly in the journal only."""
    return unpack(tmp_path)


def unpack(path: Path) -> Path:
    with tarfile.open(DATA / "format-1.tar.gz") as archive:
        archive.extractall(path / "m", filter="data")
    return path / "m"


def content(repository: Repository, branch: str) -> dict[str, object]:
    """As it was noted then: without what there was not."""
    found = json.loads(json.dumps(content_of(repository.snapshot(branch))))
    known = json.loads((DATA / "format-1.json").read_text())[branch]
    for record, before in zip(found["documents"], known["documents"], strict=True):
        assert (record["removed"], record["replaces"]) == (False, -1)
        for name in set(record) - set(before):
            del record[name]
    return {name: found[name] for name in known}


def files_of(root: Path) -> dict[str, bytes]:
    found = sorted(path for path in root.rglob("*") if path.is_file() and path.parent.name != "locks")
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def test_an_old_memory_is_read_as_it_is(old: Path) -> None:
    before = files_of(old)
    repository = Repository.open(old)
    known = json.loads((DATA / "format-1.json").read_text())
    assert repository.info.format == 1 and repository.branches() == sorted(known)
    for branch in known:
        assert content(repository, branch) == known[branch]
    assert [commit.message for _, commit in repository.history("v1")] == ["one", "An empty memory"]
    assert repository.fsck().clean and repository.fsck().notes == ()
    export = prepare_export(repository, branches="all", history=True)
    assert export.behind == ("main",) and b"".join(export.parts())
    assert files_of(old) == before


def test_writing_it_says_to_migrate(old: Path) -> None:
    repository = Repository.open(old)
    for write in (repository.writer, repository.transaction, lambda: repository.add_layer(SPEC)):
        with pytest.raises(FormatVersionError, match="megacontext migrate"):
            write()
    with pytest.raises(FormatVersionError, match="megacontext migrate"):
        repository.delete_branch("side/x")


def test_a_dry_run_tells_all_and_changes_nothing(old: Path) -> None:
    before = files_of(old)
    told = migrate(old, dry_run=True)
    assert (told.before, told.after, told.changed, told.backup) == (1, FORMAT, (INFO,), "backup/format-1")
    assert len(told.means) == FORMAT - 1 == len(STEPS)
    assert files_of(old) == before


def test_it_is_written_after_a_migration_and_the_backup_takes_it_back(old: Path) -> None:
    before = files_of(old)
    done = migrate(old)
    after = files_of(old)
    assert {name for name in after if after[name] != before.get(name)} == {INFO, f"{done.backup}/{INFO}"}
    assert after[f"{done.backup}/{INFO}"] == before[INFO]
    repository = Repository.open(old)
    known = json.loads((DATA / "format-1.json").read_text())
    assert repository.info.format == FORMAT and all(content(repository, branch) == known[branch] for branch in known)
    again = migrate(old)
    assert (again.before, again.changed, again.means, again.backup) == (FORMAT, (), (), "")
    shutil.copy(old / done.backup / INFO, old / INFO)
    assert Repository.open(old).info.format == 1


def test_what_is_new_works_on_what_is_old(old: Path) -> None:
    migrate(old)
    repository = Repository.open(old)
    with repository.writer("side/x") as writer:
        first = repository.snapshot("side/x").documents[0]
        writer.remove_document(first)
        add(writer, "new", 3)
        writer.commit("removed", time=9.0)
    assert [each.source for each in repository.snapshot("side/x").documents.live()][-1] == "new"
    assert first.source not in {each.source for each in repository.snapshot("side/x").documents.live()}
    with repository.writer("main", layer=SPEC) as writer:
        assert writer.begin_document(source="chat", open=True).tokens == 100
        writer.append_tokens(np.arange(3, dtype=np.uint32))
        writer.commit("on", time=10.0)
    assert repository.fsck().clean


def test_nobody_writes_meanwhile_and_damage_is_told(old: Path, tmp_path: Path) -> None:
    lock = FileLock(old / "locks" / "main")
    lock.acquire(wait=False, what="main")
    with pytest.raises(BranchLocked, match="main"):
        migrate(old)
    lock.release()
    assert Repository.open(old).info.format == 1
    with pytest.raises(MemoryNotFound):
        migrate(tmp_path / "none")


def test_a_newer_memory_says_what_to_do_and_is_left_alone(old: Path) -> None:
    value = unsealed((old / INFO).read_bytes())
    for number in (FORMAT + 1, 0, -1, True, "2", None):
        (old / INFO).write_bytes(sealed({**value, "format": number}))
        for attempt in (lambda: Repository.open(old), lambda: migrate(old), lambda: migrate(old, dry_run=True)):
            with pytest.raises(FormatVersionError, match="upgrade"):
                attempt()
    assert not (old / "backup").exists()


def test_a_crash_at_any_step_leaves_the_old_or_the_new(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = unpack(quick_path)
    images: list[tuple[str, Path]] = []

    def crash() -> None:
        for fate in ("killed", "lost"):
            image = quick_path / f"{fate}{len(images)}"
            if fate == "killed":
                shutil.copytree(root, image)
            else:
                shutil.copytree(root, image)
                for path in root.rglob("*"):
                    if path.is_file() and path.stat().st_ino not in disk.contents and path.stat().st_mtime > start:
                        (image / path.relative_to(root)).write_bytes(b"")
            images.append((fate, image))

    start = (root / "HEAD").stat().st_ctime
    disk = Disk(crash)
    with disk.installed(monkeypatch):
        migrate(root)
    known = json.loads((DATA / "format-1.json").read_text())
    seen = set()
    for _, image in images:
        repository = Repository.open(image)
        seen.add(repository.info.format)
        assert content(repository, "main") == known["main"]
        assert migrate(image).after == FORMAT and Repository.open(image).fsck().clean
        assert unsealed((image / "backup/format-1" / INFO).read_bytes())["format"] == 1
    assert seen == {1, FORMAT}


def test_an_archive_of_an_old_memory_becomes_a_present_one(old: Path, tmp_path: Path) -> None:
    data = b"".join(prepare_export(Repository.open(old), branches="all", history=True).parts())
    import_archive(io.BytesIO(data), tmp_path / "new")
    repository = Repository.open(tmp_path / "new")
    assert repository.info.format == FORMAT and repository.fsck().clean
    with repository.writer("side/x") as writer:
        add(writer, "more", 1)
    assert [each.source for each in repository.snapshot("side/x").documents] == ["a", "raw", "side", "more"]
