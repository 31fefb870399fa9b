"""Object stores: bytes named by the hash of their content, written once, never changed.

`ObjectStore` is the seam: the local folder here, S3 and its like later, all under the same names.
`ObjectReader` lies over any of them and keeps parsed objects.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from megacontext.core.ranges import BlockRange, joined
from megacontext.errors import CorruptObject, DetailPruned, MissingObject
from megacontext.storage import files
from megacontext.storage.hashing import Digest, Json, digest, is_name
from megacontext.storage.stubs import FOLDER as STUBS
from megacontext.storage.stubs import LOCK, RESTORE, TOKENS, Stubs
from megacontext.storage.tensors import Array, decode

# Below this a read is cheaper than a map, and a map of its own would waste most of its page.
MAPPED_FROM = 64 * 1024

Bytes = TypeVar("Bytes", bytes, memoryview)


class ObjectStore(Protocol):
    """What every object store promises. `megacontext.testing.store` holds the test of the promise.

    Any number of threads may read; one writes. A text that is not the name of an object raises CorruptObject.
    """

    def put(self, data: bytes) -> str:
        """Stages an object and returns its name. Readable here at once; durable and readable by others
        after `sync`. Putting what is there already changes nothing. Raises StorageFull."""

    def sync(self) -> None:
        """Returns once every staged object is durable under its name. Raises StorageFull."""

    def discard(self) -> None:
        """Forgets the objects staged since the last `sync`."""

    def get(self, name: str) -> bytes:
        """The object's bytes, checked against the name. Raises MissingObject, CorruptObject."""

    def view(self, name: str) -> memoryview:
        """As `get`, but mapped into memory where the store can: for large objects read in parts.
        Read-only. Checked as a whole now, not again when pages are read later; it stays what it was, also when the
        object is removed."""

    def has(self, name: str) -> bool:
        """Whether the object is there (staged or durable), without reading it."""

    def names(self) -> Iterator[str]:
        """The names of all durable objects, sorted."""


class Stat(NamedTuple):
    """An object's `size` in bytes, and when it became one, in seconds since 1970."""

    size: int
    changed: float


class LocalObjectStore:
    """Objects as files `objects/ab/<name>` of a folder.

    `staging` is this store's own folder for files that are not synced yet; nobody else may use it. What a
    crash left in it is removed by `clean`, which the holder of a branch's lock calls for the branch's own.
    """

    def __init__(self, root: Path, staging: Path) -> None:
        self._root = root
        self._staging = staging
        self._staged: dict[str, Path] = {}
        # Of staged objects those that go to the archive: what they are, and which of their rows are pruned.
        self._pruned: dict[str, tuple[str, tuple[BlockRange, ...]]] = {}

    @property
    def staged(self) -> int:
        """How many objects are staged."""
        return len(self._staged)

    def clean(self) -> None:
        """Removes what an earlier process left in the staging folder."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def put(self, data: bytes) -> str:
        name = digest(data)
        self._pruned.pop(name, None)
        if name not in self._staged and not self._keep(name):
            files.make_folder(self._staging)
            path = self._staging / name
            files.create(path, data)
            self._staged[name] = path
        return name

    def put_pruned(self, data: bytes, ranges: Iterable[BlockRange]) -> str:
        """As `put` for a segment or page of tokens of which these rows are pruned: what becomes durable is a stub, and the
        object in the archive. Where the whole object is wanted, too, or in its place already, that counts."""
        name = digest(data)
        before = self._pruned.get(name)
        whole = name in self._staged and before is None
        self.put(data)
        if not whole:
            self.to_archive(name, TOKENS, (*(before[1] if before else ()), *ranges))
        return name

    def to_archive(self, name: str, kind: str, ranges: Iterable[BlockRange]) -> None:
        """Has a staged object become durable in the archive, with a stub in its place."""
        if name in self._staged:
            self._pruned[name] = kind, joined(ranges)

    def receive(self, name: str, chunks: Iterable[bytes]) -> None:
        """As `put` for an object that comes in chunks. Raises CorruptObject, and keeps nothing, if they are not `name`."""
        path = self._staging / name if is_name(name) else self._path(name)
        files.make_folder(self._staging)
        content = Digest()
        files.create_from(path, content.watch(chunks))
        if content.name != name:
            path.unlink()
            raise CorruptObject(f"object {name} is damaged: what was received differs from its name")
        if self._keep(name):
            path.unlink()
        else:
            self._staged[name] = path

    @contextmanager
    def unswept(self) -> Iterator[None]:
        """While this lasts, the collector of garbage removes nothing. For moments only: it waits."""
        lock = self.sweep_lock()
        try:
            lock.share()
            yield
        finally:
            lock.release()

    def sweep_lock(self) -> files.FileLock:
        """The lock that whoever removes objects takes for itself, and whoever relies on one that is there shares."""
        folder = self._root.parent / "locks"
        files.make_folder(folder)
        return files.FileLock(folder / ".sweep")

    def _keep(self, name: str) -> bool:
        """Whether the object is there already; if so it is as young as a new one, so that the collector, to which it
        may have been garbage, leaves it until a branch names it."""
        path = self._path(name)
        if not path.is_file():
            return False
        with self.unswept():
            return files.freshen(path)

    def _archive(self) -> None:
        """Puts the pruned ones among the staged objects where they belong: each into the archive before its stub."""
        lock = files.FileLock(self._root.parent / "locks" / LOCK)
        stubs = Stubs(self._root.parent)
        try:
            lock.acquire(wait=True, what="what is pruned")
            for name, (kind, ranges) in self._pruned.items():
                stubs.keep(name, self._staged[name].read_bytes(), kind, ranges)
        finally:
            lock.release()
        for name in self._pruned:
            self._staged.pop(name).unlink()
        self._pruned.clear()

    def sync(self) -> None:
        if self._pruned:
            self._archive()
        # All files before the first rename, all renames before the folders: an object that has its name
        # is whole, and ext4 groups the syncs of neighbours.
        files.sync_all(self._staged.values(), files.sync_file)
        folders = {self._path(name).parent for name in self._staged}
        new = [folder for folder in sorted(folders) if not folder.is_dir()]
        for folder in new:
            files.make_folder(folder)
        for name, path in self._staged.items():
            files.rename(path, self._path(name))
        files.sync_all(sorted(folders), files.sync_folder)
        if new:
            files.sync_folder(self._root)
        self._staged.clear()

    def discard(self) -> None:
        for path in self._staged.values():
            path.unlink(missing_ok=True)
        self._staged.clear()
        self._pruned.clear()

    def get(self, name: str) -> bytes:
        with self._open(name) as file:
            return _checked(name, file.readall())

    def view(self, name: str) -> memoryview:
        with self._open(name) as file:
            if os.fstat(file.fileno()).st_size < MAPPED_FROM:
                return memoryview(_checked(name, file.readall()))
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        view = _checked(name, memoryview(mapped))
        # Scattered reads follow; the default would read ahead megabytes around each of them.
        mapped.madvise(mmap.MADV_RANDOM)
        return view

    def has(self, name: str) -> bool:
        return name in self._staged or os.path.isfile(self._place(name))

    def names(self) -> Iterator[str]:
        for folder in sorted(self._root.iterdir()) if self._root.is_dir() else ():
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if is_name(path.name):
                    yield path.name

    def stat(self, name: str) -> Stat | None:
        """What is known of a durable object without reading it; None if it is not there."""
        try:
            found = self._path(name).stat()
        except FileNotFoundError:
            return None
        # Not when it was written: an object that was long in the making is new on the day that it got its name.
        return Stat(found.st_size, max(found.st_mtime, found.st_ctime))

    def peek(self, name: str, size: int) -> bytes:
        """The first `size` bytes of a durable object, not checked. Raises MissingObject."""
        try:
            with open(self._path(name), "rb") as file:
                return file.read(size)
        except FileNotFoundError as error:
            raise _missing(name) from error

    def remove(self, names: Iterable[str]) -> None:
        """Removes durable objects for good, those that are there."""
        paths = [self._path(name) for name in names]
        for path in paths:
            files.remove(path)
        folders = {path.parent for path in paths}
        files.sync_all(sorted(folder for folder in folders if folder.is_dir()), files.sync_folder)

    def _open(self, name: str) -> FileIO:
        try:
            return FileIO(self._staged[name] if name in self._staged else self._place(name))
        except FileNotFoundError as error:
            raise self.absent(name) from error

    def absent(self, name: str) -> MissingObject | DetailPruned:
        """Why an object is not in its place."""
        if is_name(name) and os.path.exists(self._root.parent / STUBS / name):
            return DetailPruned(f"object {name} is archived: {RESTORE}")
        return _missing(name)

    def _path(self, name: str) -> Path:
        return Path(self._place(name))

    def _place(self, name: str) -> str:
        # Names come out of objects that anybody may have made; another form would lead out of the folder.
        if not isinstance(name, str) or not is_name(name):
            raise CorruptObject(f"{name!r:.80} is not the name of an object")
        # No Path: opening a memory asks for a hundred objects, and making their Paths would take half of the time.
        return f"{self._root}/{name[:2]}/{name}"


def _missing(name: str) -> MissingObject:
    return MissingObject(f"object {name} is not there; `megacontext fsck` tells what it held")


def _checked(name: str, data: Bytes) -> Bytes:
    if digest(data) != name:
        raise CorruptObject(f"object {name} is damaged: its {len(data)} bytes differ from its name")
    return data


class TensorObject(NamedTuple):
    """A parsed object: read-only arrays by name, and string metadata (`kind` among them)."""

    arrays: dict[str, Array]
    metadata: dict[str, str]


class ObjectReader:
    """Parsed objects of a store, the `keep` last used kept. Safe to share between threads. `whole`: it reads pruned rows, too
    (see `whole.WholeReader`)."""

    whole = False

    def __init__(self, store: ObjectStore, keep: int = 8192, stubs: Stubs | None = None) -> None:
        self.store = store
        self.stubs = stubs
        self._keep = keep
        self._lock = threading.Lock()
        self._parsed: OrderedDict[str, Any] = OrderedDict()

    def tensors(self, name: str, kind: str) -> TensorObject:
        """The safetensors object `name`; raises CorruptObject if it is damaged or not of that `kind`."""
        parsed: TensorObject = self._read(name, lambda: TensorObject(*decode(self.store.view(name))))
        if parsed.metadata.get("kind") != kind:
            raise CorruptObject(f"object {name} should hold {kind}, not {parsed.metadata.get('kind')}")
        return parsed

    def there(self, name: str) -> bool:
        """Whether all rows of an object can be read."""
        return self.store.has(name)

    def blocks(self, name: str) -> tuple[dict[str, Array], tuple[BlockRange, ...]]:
        """The arrays of a segment or page of tokens, and which of its rows are pruned: their ids are zeros. Without `stubs`
        such an object raises DetailPruned."""
        # What was parsed before it was pruned would still be known here.
        stub = self.stubs.load(name) if self.stubs and self.stubs.there and not self.there(name) else None
        if stub is None or stub.kind != TOKENS:
            return self.tensors(name, TOKENS).arrays, ()
        return stub.arrays, stub.ranges

    def json(self, name: str, kind: str) -> Json:
        """The JSON object `name`; raises CorruptObject if it is damaged or not of that `kind`."""
        parsed: Json = self._read(name, lambda: dict(json.loads(self.store.get(name))))
        if parsed.get("kind") != kind:
            raise CorruptObject(f"object {name} should hold {kind}, not {parsed.get('kind')}")
        return parsed

    def _read(self, name: str, parse: Callable[[], Any]) -> Any:
        with self._lock:
            if name in self._parsed:
                self._parsed.move_to_end(name)
                return self._parsed[name]
        try:
            parsed = parse()
        except (ValueError, TypeError, RecursionError) as error:
            raise CorruptObject(f"object {name} cannot be parsed: {error}") from error
        with self._lock:
            self._parsed[name] = parsed
            if len(self._parsed) > self._keep:
                self._parsed.popitem(last=False)
        return parsed
