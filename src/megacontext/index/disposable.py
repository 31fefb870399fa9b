"""Derived files: an index in SQLite that may be absent, damaged or locked at any moment, and nothing is lost.

A `DisposableFile` opens its file when it is needed, builds it again when it turns out to be damaged or of another
version, and works in this process's memory where no file can be had. What it holds is found in the memory too; so
whatever is done to the file, a search only takes longer.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
# Which of some blocks (or rows), int64 [k], may be found: bool [k].
Keep = Callable[[I64], Bool]

# Told how many segments of those that are missing are indexed.
Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Nobody watches."""


log = logging.getLogger(__name__)

FOLDER = "index"
# How long one process waits for another to finish a segment (well under a second), in milliseconds.
BUSY_MS = 10_000
# A power failure must not leave a file that looks whole and is not.
SYNCHRONOUS = "NORMAL"
# Rows that are fetched and judged together.
_BATCH = 4096
# SQLite's primary result codes for a file that is not what it should be.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT}
_SUFFIXES = ("", "-wal", "-shm", "-journal")


class Closing(Protocol):
    """An open file."""

    def close(self) -> None:
        """Closes it."""
        ...


F = TypeVar("F", bound=Closing)
T = TypeVar("T")


class DisposableFile(Generic[F]):
    """One derived file. Safe to use from several threads; any number of processes may share the file.

    `opener` opens or creates the file at a path, or one in memory for None; it, and whatever is done with what it
    returns, raises sqlite3.Error where the file is unusable. `forget` is called whenever what was known of the file
    no longer holds.
    """

    def __init__(self, path: Path, opener: Callable[[Path | None], F], forget: Callable[[], None]) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._opener, self._forget = opener, forget
        self._file: F | None = None
        self._inode = 0
        self._in_memory = False

    def using(self, work: Callable[[F], T]) -> T:
        """Does `work` with the file, with a rebuilt one if it is damaged, or else with one in memory."""
        with self.lock:
            for attempt in range(3):
                try:
                    return work(self._opened())
                except (sqlite3.Error, OSError) as error:
                    if attempt == 2 or self._in_memory:
                        raise
                    self._recover(error, rebuild=attempt == 0)
        raise AssertionError("the last try returns or raises")

    def delete(self) -> None:
        """Removes the file, and with it every trace of what was indexed; the next use starts a new one."""
        with self.lock:
            self.close()
            for suffix in _SUFFIXES:
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file; the next use opens it again."""
        with self.lock:
            self._forget()
            if self._file is not None:
                with suppress(sqlite3.Error):
                    self._file.close()
                self._file = None

    def _opened(self) -> F:
        if self._file is not None and not self._in_memory and self._inode != self._inode_now():
            self.close()  # Somebody removed or replaced it: what is in the old one is not wanted any more.
        if self._file is None and self._in_memory:
            self._file = self._opener(None)
        elif self._file is None:
            self.path.parent.mkdir(exist_ok=True)
            self._inode = self._inode_now()
            self._file = self._opener(self.path)
            self._inode = self._inode_now()
        return self._file

    def _recover(self, error: sqlite3.Error | OSError, *, rebuild: bool) -> None:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        damaged = isinstance(error, sqlite3.Error) and code in _DAMAGED
        # Only the file that was found damaged is removed: another process may have replaced it already.
        seen, now = self._inode, self._inode_now()
        self.close()
        if damaged and rebuild:
            log.warning("the index %s is damaged (%s) and is built again", self.path, error)
            try:
                if seen == now:
                    self.delete()
                return
            except OSError as refused:
                error = refused
        log.warning("the index %s cannot be used (%s); it is kept in memory", self.path, error)
        self._in_memory = True

    def _inode_now(self) -> int:
        try:
            return self.path.stat().st_ino
        except OSError:
            return 0


def connect(path: Path | None, version: int, schema: str) -> sqlite3.Connection:
    """Opens a file of this `version`, or creates it by `schema`; None: one in this process's memory.

    Raises sqlite3.DatabaseError for a file of any other version.
    """
    db = sqlite3.connect(
        ":memory:" if path is None else path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False
    )
    try:
        if path is not None:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        if _version(db) != version:
            with transaction(db):
                _create(db, version, schema)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, alone among the processes that write."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def newest(db: sqlite3.Connection, query: str, arguments: tuple[Any, ...], limit: int, keep: Keep | None = None) -> I64:
    """The first `limit` numbers that `query` (rows of one integer, descending) gives and `keep` lets pass, int64.

    Costs what is passed over on the way, too; without `keep`, `limit` rows.
    """
    found, room = [np.zeros(0, np.int64)], limit
    cursor = db.execute(query, arguments)
    while room > 0:
        rows = np.array(cursor.fetchmany(_BATCH if keep else min(room, _BATCH)), np.int64).reshape(-1)
        if not len(rows):
            break
        passed = (rows if keep is None else rows[keep(rows)])[:room]
        found.append(passed)
        room -= len(passed)
    cursor.close()
    return np.concatenate(found)


def delete_all(memory: Path | str) -> list[str]:
    """Removes every derived file of the memory at this path, whoever made it; returns their names."""
    folder = Path(memory) / FOLDER
    removed = [path for path in sorted(folder.iterdir()) if path.is_file() or path.is_symlink()] if folder.is_dir() else []
    for path in removed:
        path.unlink(missing_ok=True)
    return [path.name for path in removed]


def _create(db: sqlite3.Connection, version: int, schema: str) -> None:
    found = _version(db)  # Another process may have been faster.
    if found not in (0, version):
        raise sqlite3.DatabaseError(f"index version {found} is not {version}")
    if found == 0:
        for statement in schema.split(";")[:-1]:
            db.execute(statement)


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
