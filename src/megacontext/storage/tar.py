"""Plain tar files as streams: each member a header of 512 bytes and its content, and nothing else.

Why tar: it is written and read in one pass, also through a pipe, and every system has a tool for it. Why uncompressed: what
is in it cannot be larger than the file, so there are no bombs; gists hardly shrink, and `gzip` or `zstd` fits behind a pipe.
Extensions (long names, sparse files, attributes) are neither written nor read: in them lie the surprises.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from megacontext.errors import ArchiveError

_BLOCK = 512
CHUNK = 2**20
_KINDS = {
    tarfile.LNKTYPE: "a link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def header(name: str, size: int) -> bytes:
    """The header of a member. Its time is 0, so that equal contents give equal archives."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def padding(size: int) -> bytes:
    """What follows a member's content."""
    return bytes(-size % _BLOCK)


END = bytes(2 * _BLOCK)


@dataclass(frozen=True)
class Member:
    """A file in an archive: its `name` and `size`, and what reads its content."""

    name: str
    size: int
    chunks: Callable[[], Iterator[bytes]]

    def read(self, limit: int) -> bytes:
        """All of it; raises ArchiveError where it has more than `limit` bytes."""
        if self.size > limit:
            raise ArchiveError(f"{self.name} has {self.size} bytes in this archive, more than the {limit} that it may have")
        return b"".join(self.chunks())


def members(source: BinaryIO) -> Iterator[Member]:
    """The members in order; the content of each has to be read before the next. Raises ArchiveError for whatever is not a
    plain file, and where the stream ends too early."""
    while True:
        head = _exactly(source, _BLOCK)
        if not any(head):
            return
        try:
            info = tarfile.TarInfo.frombuf(head, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise ArchiveError(f"this is no archive of a memory, or a damaged one: {error}") from error
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kind = _KINDS.get(info.type, "something unusual")
            raise ArchiveError(f"{info.name!r:.99} in this archive is {kind}: only plain files are taken, nothing was imported")
        if info.size < 0:
            raise ArchiveError(f"{info.name!r:.99} in this archive has a size of {info.size}")
        yield Member(info.name, info.size, partial(_content, source, info.size))


def _content(source: BinaryIO, size: int) -> Iterator[bytes]:
    left = size
    while left:
        chunk = _exactly(source, min(left, CHUNK))
        left -= len(chunk)
        yield chunk
    _exactly(source, -size % _BLOCK)


def _exactly(source: BinaryIO, size: int) -> bytes:
    parts = []
    while size:
        part = source.read(size)
        if not part:
            raise ArchiveError("this archive ends too early: it was cut, or its transfer is not finished")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
