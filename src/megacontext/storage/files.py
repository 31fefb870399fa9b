"""The operating system calls that durability rests on, in one place.

Every byte that this package writes goes through these functions. So an error of the disk is translated
once, and a test can stand between the package and the disk to play a crash after any single step.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time as clock
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from megacontext.errors import BranchLocked, StorageError, StorageFull

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns the errors of the operating system into StorageFull or StorageError that name `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            raise StorageFull(
                f"cannot write {path}: {reason}; what was acknowledged is kept, free some space and run again"
            ) from error
        raise StorageError(f"cannot write {path}: {reason}") from error


def write(descriptor: int, data: bytes | memoryview, path: Path) -> None:
    """Writes all of `data`; raises StorageFull when it does not fit (a part may have been written)."""
    rest = memoryview(data)
    with translated(path):
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def sync(descriptor: int, path: Path) -> None:
    """Returns once the file's data and size are on the disk."""
    with translated(path):
        os.fdatasync(descriptor)


def truncate(descriptor: int, size: int, path: Path) -> None:
    """Cuts the file to `size` bytes."""
    with translated(path):
        os.ftruncate(descriptor, size)


def make_folder(path: Path) -> None:
    """Creates a folder and those above it; the entry is durable after `sync_folder` of the one above."""
    with translated(path):
        path.mkdir(parents=True, exist_ok=True)


def sync_folder(path: Path) -> None:
    """Returns once the entries of the folder (names created, renamed or removed) are on the disk."""
    with translated(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def create(path: Path, data: bytes | memoryview) -> None:
    """Writes a new file without syncing it; nothing is left behind when the disk is full."""
    create_from(path, (data,))


def create_from(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """The same for a file that comes in parts; nothing is left behind either when they end in an error."""
    with translated(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for data in parts:
            write(descriptor, data, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Syncs a file that was written earlier."""
    with translated(path):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor, path)
    finally:
        os.close(descriptor)


def sync_all(paths: Iterable[Path], sync_one: Callable[[Path], None]) -> None:
    """Calls `sync_file` or `sync_folder` on many paths side by side: the file system then groups them, which on ext4
    makes a commit of 200 objects eight times faster."""
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(sync_one, paths):
            pass


def rename(source: Path, target: Path) -> None:
    """Atomically puts `source` in the place of `target`; durable after `sync_folder`."""
    with translated(target):
        os.replace(source, target)


def remove(path: Path) -> None:
    """Removes a file if it is there; durable after `sync_folder`."""
    with translated(path), suppress(FileNotFoundError):
        os.unlink(path)


def freshen(path: Path) -> bool:
    """Gives a file the time of now, for what removes old ones; False if it is not there."""
    with translated(path):
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
    return True


def prepare(path: Path, data: bytes) -> Path:
    """Writes and syncs what is to take the place of `path`, beside it; see `install`."""
    # One name is enough: whoever may replace the file holds a lock, and a leftover is overwritten.
    temporary = path.with_name(f".{path.name}.tmp")
    create(temporary, data)
    sync_file(temporary)
    return temporary


def install(temporary: Path, path: Path) -> None:
    """Puts a prepared file in its place, durably."""
    rename(temporary, path)
    sync_folder(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Replaces a small file atomically and durably: whoever reads it sees the old or the new content."""
    install(prepare(path, data), path)


def write_whole(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Writes a new file durably: it has its name once all of it is on the disk."""
    temporary = path.with_name(f".{path.name}.part")
    create_from(temporary, parts)
    try:
        sync_file(temporary)
        install(temporary, path)
    except BaseException:
        remove(temporary)
        raise


class FileLock:
    """A lock that the operating system drops when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with translated(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def acquire(self, *, wait: bool, what: str, patience: float = 0.0) -> None:
        """Takes the lock; raises BranchLocked naming `what` and the holder when it is still taken after `patience` seconds and
        not `wait`."""
        until = clock.monotonic() + patience
        try:
            while not wait and clock.monotonic() < until:
                with suppress(BlockingIOError):
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                clock.sleep(0.01)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if not wait:
                # For the message below only: the lock itself is flock's, a stale number locks nothing.
                with suppress(OSError):
                    os.ftruncate(self._descriptor, 0)
                    os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            self.release()
            raise BranchLocked(
                f"{what} is being written by process {holder}; wait for it to finish, or write to another branch"
            ) from error
        except BaseException:
            # Interrupted while it waited, or right after: whoever asked does not know whether the lock is taken.
            self.release()
            raise

    def taken(self) -> bool:
        """Whether somebody has the lock for himself; lets go of it, too."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            self.release()
        return False

    def share(self) -> None:
        """Takes the lock together with others who share it, waiting for whoever has it alone."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        """Drops the lock; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
