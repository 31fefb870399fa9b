"""The conformance suite of object stores: derive from it, say how to open your store, and run it with pytest.

::

    class TestMyStore(ObjectStoreSuite):
        def open_store(self, place): return MyStore(place)
        def overwrite(self, place, name, data): ...
        def full(self, place): ...
"""

from __future__ import annotations

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megacontext.errors import CorruptObject, MissingObject, StorageFull
from megacontext.storage.hashing import digest, is_name
from megacontext.storage.objects import MAPPED_FROM, ObjectStore

SMALL = b"some bytes"
LARGE = bytes(range(256)) * (MAPPED_FROM // 128)
ABSENT = digest(b"never put")
NO_NAMES = ["", "/", "..", "../secret", "/etc/passwd", ABSENT.upper(), ABSENT[:-1], ABSENT + "0", "é" * 64]
CONTENTS = st.sampled_from([b"", b"a", b"b", LARGE])


class ObjectStoreSuite:
    """What `ObjectStore` promises, one test for each promise."""

    def open_store(self, place: Path) -> ObjectStore:
        """A client of the store at `place`. Two clients of one place see each other's synced objects, and do not
        share what is staged."""
        raise NotImplementedError

    def overwrite(self, place: Path, name: str, data: bytes | None) -> None:
        """Damages a durable object behind the store's back: other content, or None to remove it."""
        raise NotImplementedError

    def full(self, place: Path) -> AbstractContextManager[object]:
        """A context in which the store at `place` has no room for another byte."""
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

    def test_two_clients_may_put_the_same_object(self, tmp_path: Path) -> None:
        one, two = self.open_store(tmp_path), self.open_store(tmp_path)
        name = one.put(LARGE)
        assert two.put(LARGE) == name
        one.sync()
        two.sync()
        assert list(two.names()) == [name] and one.get(name) == two.get(name) == LARGE

    def test_what_another_client_made_durable_is_not_discarded(self, tmp_path: Path) -> None:
        one, two = self.open_store(tmp_path), self.open_store(tmp_path)
        name = one.put(SMALL)
        two.put(SMALL)
        two.sync()
        one.discard()
        assert one.has(name) and one.get(name) == SMALL

    def test_what_was_discarded_may_be_put_again(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path)
        name = store.put(SMALL)
        store.discard()
        assert store.put(SMALL) == name
        store.sync()
        assert self.open_store(tmp_path).get(name) == SMALL

    def test_a_view_is_read_only_and_stays_what_it_was(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path)
        name = store.put(LARGE)
        staged = store.view(name)
        store.sync()
        durable = store.view(name)
        self.overwrite(tmp_path, name, None)
        for view in (staged, durable):
            assert view.readonly and bytes(view) == LARGE

    @pytest.mark.parametrize(
        "text", ["", "/", "..", "../secret", "/etc/passwd", ABSENT.upper(), ABSENT[:-1], ABSENT + "0", "é" * 64]
    )
    @pytest.mark.parametrize("call", ["get", "view", "has"])
    def test_what_is_no_name_leads_nowhere(self, tmp_path: Path, call: str, text: str) -> None:
        (tmp_path / "secret").write_bytes(SMALL)
        with pytest.raises(CorruptObject):
            getattr(self.open_store(tmp_path), call)(text)

    def test_what_does_not_fit_is_refused_and_the_rest_stays(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path)
        kept = store.put(SMALL)
        store.sync()
        with self.full(tmp_path), pytest.raises(StorageFull):
            store.put(LARGE)
            store.sync()
        store.discard()
        assert store.get(kept) == SMALL and list(store.names()) == [kept]
        name = store.put(LARGE)
        store.sync()
        assert self.open_store(tmp_path).get(name) == LARGE

    def test_an_object_that_has_its_name_is_whole_for_every_reader(self, tmp_path: Path) -> None:
        store, done = self.open_store(tmp_path), threading.Event()

        def read() -> int:
            reader, found = self.open_store(tmp_path), 0
            while not done.is_set() or not found:
                for name in reader.names():
                    found += digest(reader.get(name)) == name == digest(reader.view(name))
            return found

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(read) for _ in range(4)]
            for number in range(60):
                store.put(number.to_bytes(2, "big") * (number * 1000))
                if number % 5 == 0:
                    store.sync()
            store.sync()
            done.set()
            assert all(each.result() > 0 for each in running)

    @settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.differing_executors])
    @given(calls=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["put", "put", "sync", "discard", "open"]), CONTENTS)))
    def test_any_order_of_calls_is_as_sets_say(self, calls: list[tuple[int, str, bytes]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            clients = [self.open_store(place), self.open_store(place)]
            durable: set[str] = set()
            staged: list[set[str]] = [set(), set()]
            for who, call, data in calls:
                if call == "put":
                    name = clients[who].put(data)
                    staged[who] |= {name} - durable
                elif call == "open":
                    clients[who], staged[who] = self.open_store(place), set()
                else:
                    getattr(clients[who], call)()
                    durable |= staged[who] if call == "sync" else set()
                    staged[who] = set()
                for client, own in zip(clients, staged, strict=True):
                    assert list(client.names()) == sorted(durable)
                    for each in (b"", b"a", b"b", LARGE):
                        assert client.has(digest(each)) == (digest(each) in durable | own)
                        assert not client.has(digest(each)) or client.get(digest(each)) == each

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
