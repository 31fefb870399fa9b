"""A full disk: every write may be refused; what was acknowledged stays, and writing goes on once there is room."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
from storage_driver import SPEC, Gister, add, create, ids_of, roots

from megacontext.errors import StorageError, StorageFull


class FullAfter:
    """Lets `left` bytes through, then behaves as a full disk does: a short write first, then ENOSPC."""

    def __init__(self, left: int) -> None:
        self.left = left
        self._write = os.write

    def __call__(self, descriptor: int, data: memoryview) -> int:
        if self.left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = data[: self.left]
        self.left -= len(part)
        return self._write(descriptor, part)


@pytest.mark.parametrize("left", [0, 1, 300, 2000, 5000, 9000, 12000, 15000, 20000])
def test_a_full_disk_at_any_point_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    repository, same = create(tmp_path / "m"), create(tmp_path / "same")
    gister, ids = Gister(), ids_of("b", 40)
    with same.writer(layer=SPEC) as writer:
        add(writer, "a", 40, Gister())
        model = Gister()
        model.add(ids_of("a", 40))
        add(writer, "b", 40, model)
        writer.commit()
    with repository.writer(layer=SPEC) as writer:
        add(writer, "a", 40, gister)
        new = gister.add(ids)
        monkeypatch.setattr(os, "write", FullAfter(left))
        steps = [
            lambda: writer.begin_document(source="b", text_hash="hash of b", ingested_at=2.0, tags=("t",)),
            lambda: writer.append_blocks(ids, gists=new, chars=range(100, 4100, 100), lines=range(1, 41)),
            lambda: writer.end_document(chars=4000, lines=40),
            lambda: writer.commit(),
        ]
        failed = 0
        for step in steps:
            try:
                step()
            except StorageFull as error:
                failed += 1
                assert "acknowledged is kept" in str(error)
                assert repository.snapshot().documents[0].source == "a"
                monkeypatch.undo()
                step()
        monkeypatch.undo()
        assert failed <= 1
        writer.commit()
    assert roots(repository) == roots(same)
    assert repository.fsck().clean


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    repository, gister = create(tmp_path / "m"), Gister()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with repository.writer(layer=SPEC) as writer:
        add(writer, "a", 2, gister)
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "m/journal/main.wal").stat().st_size + 700, hard))
        try:
            with pytest.raises(StorageFull, match=r"main\.wal"):
                add(writer, "b", 40, gister.copy())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        writer.abort_document()
        add(writer, "c", 1, gister)
        writer.commit()
    assert [each.source for each in repository.snapshot().documents] == ["a", "c"]
    assert repository.fsck().clean


def test_a_failed_sync_is_final_for_the_writer_not_for_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    repository = create(tmp_path / "m")
    with repository.writer() as writer:
        add(writer, "a", 2)
        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageError):
            add(writer, "b", 2)
        monkeypatch.undo()
        with pytest.raises(StorageError, match="open the branch for writing again"):
            writer.commit()
    with repository.writer() as writer:
        writer.commit()
    assert repository.snapshot().documents[0].source == "a"
    assert repository.fsck().clean
