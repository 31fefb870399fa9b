from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from megacontext.errors import CorruptObject, StorageError, StorageFull
from megacontext.storage import LocalObjectStore, ObjectReader, ObjectStore
from megacontext.storage.tensors import encode
from megacontext.testing.faults import Fate, Faults
from megacontext.testing.store import ObjectStoreSuite


class TestLocalObjectStore(ObjectStoreSuite):
    clients = 0

    def open_store(self, place: Path) -> ObjectStore:
        self.clients += 1
        return LocalObjectStore(place / "objects", place / "staging" / str(self.clients))

    def overwrite(self, place: Path, name: str, data: bytes | None) -> None:
        path = place / "objects" / name[:2] / name
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)

    def full(self, place: Path) -> AbstractContextManager[object]:
        return Faults(Fate.FULL, 1).installed()


def local(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "objects", tmp_path / "staging")


def test_clean_removes_what_a_crash_left(tmp_path: Path) -> None:
    name = local(tmp_path).put(b"staged, never synced")
    store = local(tmp_path)
    store.clean()
    assert list(tmp_path.rglob(name)) == []
    assert store.put(b"staged, never synced") == name
    store.sync()
    assert store.get(name) == b"staged, never synced"


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, StorageError)]
)
def test_a_failing_disk_is_a_typed_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    store = local(tmp_path)
    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(kind, match="cannot write"):
        store.put(b"data")
    monkeypatch.undo()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_reader_knows_kinds(tmp_path: Path) -> None:
    store = local(tmp_path)
    tensors, text, garbage = store.put(encode({}, {"kind": "a"})), store.put(b'{"kind":"b"}'), store.put(b"x")
    reader = ObjectReader(store, keep=1)
    assert reader.tensors(tensors, "a").metadata == {"kind": "a"}
    assert reader.json(text, "b") == {"kind": "b"}
    for read in (reader.tensors, reader.json):
        with pytest.raises(CorruptObject, match=garbage):
            read(garbage, "a")
    with pytest.raises(CorruptObject, match="should hold c, not a"):
        reader.tensors(tensors, "c")
    with pytest.raises(CorruptObject, match="should hold c, not b"):
        reader.json(text, "c")


@pytest.mark.parametrize("name", ["../../outside", "/dev/zero", "", "a" * 63, "A" * 64, 7, None])
def test_a_name_of_another_form_leads_nowhere(tmp_path: Path, name: str) -> None:
    """Objects name objects, and anybody may have made them."""
    (tmp_path / "outside").write_bytes(b"secret")
    store = local(tmp_path / "a")
    for read in (store.get, store.view, store.has):
        with pytest.raises(CorruptObject, match="not the name of an object"):
            read(name)


def test_what_is_put_again_is_young_again(tmp_path: Path) -> None:
    """The collector goes by age: an object that was garbage may be part of the next commit."""
    store = local(tmp_path)
    path = tmp_path / "objects" / (name := store.put(b"some"))[:2] / name
    store.sync()
    os.utime(path, (1, 1))
    store.put(b"some")
    assert path.stat().st_mtime > 1
