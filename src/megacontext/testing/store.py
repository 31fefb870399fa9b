"""The conformance suite of object stores: derive from it, say how to open your store, and run it with pytest.

::

    class TestMyStore(ObjectStoreSuite):
        def open_store(self, place): return MyStore(place)
        def overwrite(self, place, name, data): ...
"""

from __future__ import annotations

from pathlib import Path

import pytest

from megacontext.errors import CorruptObject, MissingObject
from megacontext.storage.hashing import digest, is_name
from megacontext.storage.objects import MAPPED_FROM, ObjectStore

SMALL = b"some bytes"
LARGE = bytes(range(256)) * (MAPPED_FROM // 128)
ABSENT = digest(b"never put")


class ObjectStoreSuite:
    """What `ObjectStore` promises, one test for each promise."""

    def open_store(self, place: Path) -> ObjectStore:
        """A client of the store at `place`. Two clients of one place see each other's synced objects, and do not
        share what is staged."""
        raise NotImplementedError

    def overwrite(self, place: Path, name: str, data: bytes | None) -> None:
        """Damages a durable object behind the store's back: other content, or None to remove it."""
        raise NotImplementedError

    @pytest.mark.parametrize("data", [b"", SMALL, LARGE])
    def test_a_name_is_the_hash_of_the_content(self, tmp_path: Path, data: bytes) -> None:
        name = self.open_store(tmp_path).put(data)
        assert name == digest(data) and is_name(name)

    @pytest.mark.parametrize("data", [b"", SMALL, LARGE])
    def test_what_is_synced_is_there_for_everyone(self, tmp_path: Path, data: bytes) -> None:
        store = self.open_store(tmp_path)
        name = store.put(data)
        store.sync()
        for client in (store, self.open_store(tmp_path)):
            assert client.has(name)
            assert client.get(name) == data
            assert bytes(client.view(name)) == data

    def test_what_is_staged_is_readable_here_and_nowhere_else(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path)
        names = [store.put(SMALL), store.put(LARGE)]
        other = self.open_store(tmp_path)
        assert [store.get(name) for name in names] == [SMALL, LARGE]
        assert [bytes(store.view(name)) for name in names] == [SMALL, LARGE]
        assert [store.has(name) for name in names] == [True, True]
        assert [other.has(name) for name in names] == [False, False]
        assert list(other.names()) == []

    def test_what_is_discarded_is_gone_and_the_rest_is_not(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path)
        kept = store.put(SMALL)
        store.sync()
        again, dropped = store.put(SMALL), store.put(LARGE)
        store.discard()
        store.sync()
        assert again == kept and store.get(kept) == SMALL
        assert not store.has(dropped)

    def test_putting_twice_is_putting_once(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path)
        first = store.put(SMALL)
        store.sync()
        assert store.put(SMALL) == first == self.open_store(tmp_path).put(SMALL)
        store.sync()
        assert list(store.names()) == [first]

    def test_names_are_sorted_and_complete(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path)
        put = {store.put(number.to_bytes(2, "big")) for number in range(300)}
        store.sync()
        assert list(self.open_store(tmp_path).names()) == sorted(put)

    def test_syncing_nothing_is_allowed(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path)
        store.sync()
        store.discard()
        assert list(store.names()) == []

    @pytest.mark.parametrize("read", ["get", "view"])
    def test_a_missing_object_is_named(self, tmp_path: Path, read: str) -> None:
        store = self.open_store(tmp_path)
        assert not store.has(ABSENT)
        with pytest.raises(MissingObject, match=ABSENT):
            getattr(store, read)(ABSENT)
        name = store.put(SMALL)
        store.sync()
        self.overwrite(tmp_path, name, None)
        with pytest.raises(MissingObject, match=name):
            getattr(self.open_store(tmp_path), read)(name)

    @pytest.mark.parametrize("read", ["get", "view"])
    @pytest.mark.parametrize("data", [SMALL, LARGE])
    def test_damage_is_noticed_and_named(self, tmp_path: Path, data: bytes, read: str) -> None:
        store = self.open_store(tmp_path)
        name = store.put(data)
        store.sync()
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 4
        for damaged in (bytes(flipped), data[:-1], data + b"\0", b""):
            self.overwrite(tmp_path, name, damaged)
            with pytest.raises(CorruptObject, match=name):
                getattr(self.open_store(tmp_path), read)(name)
