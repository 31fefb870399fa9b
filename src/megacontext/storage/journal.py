"""The journal: what a branch has acknowledged beyond its last commit, as checksummed records in one file.

::

    file    = magic, name of the commit it continues, crc32        44 bytes
    record  = length, kind, crc32 of these                         12 bytes
              payload (a safetensors object)                       length bytes
              crc32 of the payload, END                             8 bytes

Every crc continues the one before it, so a record that is taken out or moved is noticed too. A record that
the file ends within was never acknowledged: a torn write, cut off. The same holds where the END mark is
still zero, as after a power failure on a file system that grows a file before it fills it. Anything else
that does not add up is damage and raises CorruptObject.

A COMMIT record names the commit that holds everything finished before it; it is written before the branch
moves. Whether the branch is at that commit or still at the file's own tells how far a crash got.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from megacontext.errors import CorruptObject, StorageError
from megacontext.storage import files
from megacontext.storage.hashing import NAME_BYTES, checksum
from megacontext.storage.tensors import Array, decode, encode

MAGIC = b"MCJRNL01"
END = 0x4D43454E
_FILE = struct.Struct(f"<8s{NAME_BYTES}sI")
_HEAD = struct.Struct("<IB3xI")
_TAIL = struct.Struct("<II")


class RecordKind(IntEnum):
    """What a record says."""

    BEGIN = 1  # a document begins
    BLOCKS = 2  # whole blocks of it, with the gists of all nodes they complete
    TOKENS = 3  # tokens of an open document, which fill blocks as they come
    END = 4  # the document is finished
    ABORT = 5  # the document is dropped
    COMMIT = 6  # what is finished so far is in this commit
    REMOVE = 7  # a document is taken out: its tombstone, and gists made again without it


class Record(NamedTuple):
    """A record's content."""

    kind: RecordKind
    metadata: dict[str, str]
    arrays: dict[str, Array]

    def payload(self) -> bytes:
        """The bytes that the journal keeps."""
        return encode(self.arrays, self.metadata)


class Frame(NamedTuple):
    """A record as it lies in the file."""

    offset: int
    kind: RecordKind
    payload: memoryview

    def parse(self) -> Record:
        """The record's content."""
        arrays, metadata = decode(self.payload)
        return Record(self.kind, metadata, arrays)


@dataclass(frozen=True, kw_only=True)
class JournalContent:
    """A journal as read: the commit that it continues, its whole records, and where they end."""

    base: str
    frames: tuple[Frame, ...]
    size: int
    chain: int
    torn: int

    def live(self, head: str) -> list[Frame] | None:
        """The records that count on top of commit `head`; None if the journal does not lead there."""
        if head == self.base:
            return [frame for frame in self.frames if frame.kind != RecordKind.COMMIT]
        for at in range(len(self.frames) - 1, -1, -1):
            frame = self.frames[at]
            if frame.kind == RecordKind.COMMIT and frame.parse().metadata["commit"] == head:
                rest = unfinished(self.frames[:at]) + list(self.frames[at + 1 :])
                return [frame for frame in rest if frame.kind != RecordKind.COMMIT]
        return None


def originals(frames: Iterable[Frame]) -> Iterator[str]:
    """The objects that records name: the originals of finished documents."""
    for frame in frames:
        if frame.kind == RecordKind.END and (name := frame.parse().metadata.get("original")):
            yield name


def unfinished(frames: Iterable[Frame]) -> list[Frame]:
    """The records of the one document at the end that is neither finished, dropped nor open."""
    rest: list[Frame] = []
    for frame in frames:
        if frame.kind == RecordKind.BEGIN:
            rest = [] if frame.parse().metadata.get("open") else [frame]
        elif frame.kind in (RecordKind.END, RecordKind.ABORT):
            rest = []
        elif rest and frame.kind != RecordKind.COMMIT:
            rest.append(frame)
    return rest


def read_journal(path: Path) -> JournalContent | None:
    """The journal at `path`, or None if there is none. Raises CorruptObject naming the file and the byte."""
    try:
        data = memoryview(path.read_bytes())
    except FileNotFoundError:
        return None
    if len(data) < _FILE.size:
        raise CorruptObject(f"journal {path} is damaged: it ends within its first {_FILE.size} bytes")
    magic, base, crc = _FILE.unpack_from(data)
    if magic != MAGIC or checksum(data[: _FILE.size - 4]) != crc:
        raise CorruptObject(f"journal {path} is damaged: its header does not match its checksum")
    frames: list[Frame] = []
    size, chain = _FILE.size, crc
    for frame, chain_after in _frames(path, data, crc):
        frames.append(frame)
        chain = chain_after
        size = frame.offset + _HEAD.size + len(frame.payload) + _TAIL.size
    return JournalContent(base=base.hex(), frames=tuple(frames), size=size, chain=chain, torn=len(data) - size)


def _frames(path: Path, data: memoryview, chain: int) -> Iterator[tuple[Frame, int]]:
    """Whole records, each with the checksum up to its end; stops at a torn one."""
    at = _FILE.size
    while len(data) - at >= _HEAD.size:
        length, kind, crc = _HEAD.unpack_from(data, at)
        if checksum(data[at : at + 8], chain) != crc:
            if not any(data[at:]):  # grown, never filled
                return
            raise CorruptObject(f"journal {path} is damaged at byte {at}: a record's header")
        start, stop = at + _HEAD.size, at + _HEAD.size + length
        if stop + _TAIL.size > len(data):
            return
        payload = data[start:stop]
        payload_crc, end = _TAIL.unpack_from(data, stop)
        if end != END or checksum(payload, crc) != payload_crc:
            if end == 0 and not any(data[stop:]):
                return
            raise CorruptObject(f"journal {path} is damaged at byte {at}: a record of {length} bytes")
        yield Frame(at, RecordKind(kind), payload), payload_crc
        at, chain = stop + _TAIL.size, payload_crc


class Journal:
    """The journal of a branch, held by its writer. Appended records are durable after `sync`.

    `records` is how many the file holds.
    """

    def __init__(self, path: Path, base: str, content: JournalContent | None) -> None:
        """Takes over the file as it was read (cutting what is torn), or starts a new one on commit `base`."""
        self.path = path
        self._descriptor = -1
        self._size = self._chain = 0
        self._broken = False
        self._dirty = False
        self.records = 0
        if content is None:
            self.restart(base, ())
            return
        self.records = len(content.frames)
        self._open(content.size, content.chain)
        if content.torn:
            files.truncate(self._descriptor, content.size, path)
            files.sync(self._descriptor, path)

    def append(self, record: Record) -> None:
        """Adds a record. On StorageFull the journal is as before, and may be appended to again."""
        self._check()
        frame, chain = _framed(record.kind, record.payload(), self._chain)
        try:
            files.write(self._descriptor, frame, self.path)
        except StorageError:
            # What was written of it must go: a later record would lie behind a torn one.
            try:
                files.truncate(self._descriptor, self._size, self.path)
            except StorageError:
                self._broken = True
            raise
        self._size += len(frame)
        self._chain = chain
        self._dirty = True
        self.records += 1

    def sync(self) -> None:
        """Returns once every record appended is on the disk; only then may it be acknowledged."""
        self._check()
        if self._dirty:
            # First, so that a record appended meanwhile by another thread makes it dirty again.
            self._dirty = False
            try:
                files.sync(self._descriptor, self.path)
            except StorageError:
                # After a failed sync the system may drop the pages and report success the next time.
                self._broken = True
                raise

    def restart(self, base: str, frames: Iterable[Frame]) -> None:
        """Replaces the file, atomically and durably, by one that continues commit `base` with `frames`."""
        head = _FILE.pack(MAGIC, bytes.fromhex(base), 0)[:-4]
        chain = checksum(head)
        parts = [head, chain.to_bytes(4, "little")]
        kept = list(frames)
        for frame in kept:
            data, chain = _framed(frame.kind, bytes(frame.payload), chain)
            parts.append(data)
        content = b"".join(parts)
        temporary = files.prepare(self.path, content)
        # Until the next line the old file is in force; from here on the descriptor may be of a file that has
        # lost its name.
        self._broken = True
        files.install(temporary, self.path)
        self._open(len(content), chain)
        self._broken = self._dirty = False
        self.records = len(kept)

    def content(self) -> JournalContent:
        """The journal as it lies on the disk."""
        content = read_journal(self.path)
        if content is None:
            raise CorruptObject(f"journal {self.path} is gone while it is written")
        return content

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more: closed, or failed while writing."""
        return self._broken or self._descriptor < 0

    def close(self) -> None:
        """Closes the file; raises nothing."""
        if self._descriptor >= 0:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1

    def _open(self, size: int, chain: int) -> None:
        self.close()
        with files.translated(self.path):
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._size = size
        self._chain = chain

    def _check(self) -> None:
        if self.closed:
            raise StorageError(f"journal {self.path} is closed or failed while writing; open the branch for writing again")


def _framed(kind: RecordKind, payload: bytes, chain: int) -> tuple[bytes, int]:
    """A record's bytes and the checksum up to its end."""
    head = _HEAD.pack(len(payload), kind, 0)[:8]
    crc = checksum(head, chain)
    payload_crc = checksum(payload, crc)
    tail = _TAIL.pack(payload_crc, END)
    return b"".join((head, crc.to_bytes(4, "little"), payload, tail)), payload_crc


def journal_frames(path: Path, head: str) -> list[Frame] | None:
    """The records on top of commit `head`; None if the journal at `path` does not lead to that commit."""
    content = read_journal(path)
    return content.live(head) if content else []
