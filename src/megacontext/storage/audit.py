"""The audit log: every act that takes something away, one line each, each line with the hash of the one before.

`audit/log.jsonl` is only ever appended to. A line that is changed, taken out or put in breaks the chain behind it, which
`verify` tells. Lines cut off the end leave a chain that is whole: keep a copy of the last hash, which `megacontext audit`
prints, where this has to be noticed. Lines never hold what was erased: names stand there as keyed hashes only.
"""

from __future__ import annotations

import json
import os
import time as clock
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacontext.errors import CorruptObject
from megacontext.storage import files
from megacontext.storage.hashing import Json, canonical, digest

FOLDER = "audit"
LOG = "log.jsonl"
# What the first line gives as the hash of the line before it.
START = "0" * 64
ACTS = frozenset({"erase", "readmit", "prune", "restore", "repack", "gc", "protect", "unprotect", "import"})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One act: its `number` from 0, what was done, when (seconds since 1970), by whom, what else there is to say, and the
    hashes of the line before and of this one."""

    number: int
    act: str
    time: float
    author: str
    details: Mapping[str, Any]
    before: str
    hash: str

    def to_json(self) -> Json:
        """The line as a JSON object."""
        return {**vars(self), "details": dict(self.details)}


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The log as read: whole `entries`, what is `wrong` with the chain ('' for nothing), and how many bytes at the end are
    of a line that was never finished."""

    entries: tuple[Entry, ...]
    wrong: str = ""
    torn: int = 0

    @property
    def head(self) -> str:
        """The hash of the last line: what the next one continues."""
        return self.entries[-1].hash if self.entries else START


def append(
    root: Path, act: str, details: Mapping[str, Any] | None = None, *, author: str = "", time: float | None = None
) -> Entry:
    """Adds an act to the log of the memory at `root`, durably. `details` is plain data without names or texts that are to be
    gone. Raises CorruptObject where the log was tampered with: it is not continued then."""
    if act not in ACTS:
        raise ValueError(f"no act {act!r} is logged")
    with _locked(root):
        chain = read(root)
        if chain.wrong:
            raise CorruptObject(f"{path(root)} is damaged: {chain.wrong}; see `megacontext audit --verify`")
        value: Json = {
            "number": len(chain.entries),
            "act": act,
            "time": clock.time() if time is None else time,
            "author": author,
            "details": dict(details or {}),
            "before": chain.head,
        }
        value["hash"] = digest(canonical(value))
        _write(path(root), canonical(value) + b"\n", chain.torn)
    return _entry(value)


def read(root: Path) -> Chain:
    """The log of the memory at `root`, up to the first line that does not continue the chain. A memory without one has an
    empty log."""
    try:
        data = path(root).read_bytes()
    except FileNotFoundError:
        return Chain(entries=())
    lines = data.split(b"\n")
    torn = len(lines.pop())  # what is behind the last line's end
    entries: list[Entry] = []
    before = START
    for number, line in enumerate(lines):
        try:
            value = json.loads(line)
            claimed = value.pop("hash")
            fits = (value["number"], value["before"]) == (number, before)
            if claimed != digest(canonical(value)) or canonical({**value, "hash": claimed}) != line or not fits:
                raise ValueError("its hash or its place in the chain is wrong")
            entries.append(_entry({**value, "hash": claimed}))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return Chain(entries=tuple(entries), wrong=f"line {number + 1} does not continue the chain ({error})")
        before = claimed
    return Chain(entries=tuple(entries), torn=torn)


def path(root: Path) -> Path:
    """The log of the memory at `root`."""
    return root / FOLDER / LOG


def _entry(value: Json) -> Entry:
    return Entry(**{name: value[name] for name in Entry.__dataclass_fields__})


def _write(log: Path, line: bytes, torn: int) -> None:
    new = not log.exists()
    with files.translated(log):
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(descriptor).st_size
    try:
        if torn:  # of a crash: it was acknowledged to nobody
            size -= torn
            files.truncate(descriptor, size, log)
        try:
            files.write(descriptor, line, log)
        except BaseException:
            files.truncate(descriptor, size, log)
            raise
        files.sync(descriptor, log)
    finally:
        os.close(descriptor)
    if new:
        files.sync_folder(log.parent)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    if not (root / FOLDER).is_dir():
        files.make_folder(root / FOLDER)
        files.sync_folder(root)
    files.make_folder(root / "locks")
    lock = files.FileLock(root / "locks" / ".audit")
    try:
        lock.acquire(wait=True, what="the audit log")
        yield
    finally:
        lock.release()
