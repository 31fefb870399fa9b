"""What files are called in a memory, for good.

A file beside or below the memory's folder is called by its path from there, so that a project may move together with its
memory; one elsewhere by its whole path (`file:///…`). Neither depends on how the file was named, from which folder, or with
what else; a link to a file is a file of its own where the link stands, while links among the folders above are followed.

Where a memory, or what was added to it, has moved since, or was made when files from elsewhere had only the last part of
their path, files have other names than they had. They are known again by what they say, as git knows a file that was
renamed: under a name at whose place nothing lies any more, if most of what the memory has there is among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

from megacontext.errors import DetailPruned
from megacontext.storage import DocumentRecord
from megacontext.storage.hashing import digest

FILE = "file:"
# A folder is judged by so many of its files.
_JUDGED = 100
# Larger files are known again only unchanged; comparing the lines of a smaller one takes little.
_COMPARED_BYTES = 2**22

T = TypeVar("T")


def name_of(path: Path, around: Path | None) -> str:
    """The name of a resolved `path` in a memory that lies in the folder `around` (None: nowhere): `file:` alone for that
    folder itself."""
    if around is not None and path.is_relative_to(around):
        return FILE + printable("/".join(path.relative_to(around).parts))
    return f"{FILE}//{'' if path.as_posix().startswith('/') else '/'}{printable(path.as_posix())}"


def below(folder: str, name: str) -> str:
    """The name of an entry of a folder that has a name."""
    return folder + "/" * (folder != FILE and not folder.endswith("/")) + printable(name)


def renamed(name: str, folder: str, other: str) -> str:
    """The name of what lies in a folder (or of itself) where that is called `other`."""
    rest = name[len(folder) :].lstrip("/")
    return below(other, rest) if rest else other


def place_of(name: str, around: Path) -> Path:
    """Where a file of that name lies."""
    path = name.removeprefix(FILE)
    return Path(path.removeprefix("//")) if path.startswith("///") else around / path


def printable(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 become escapes such as \\xff, since names are stored as UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class File(Protocol):
    """A file on disk and what it is called."""

    @property
    def uri(self) -> str:
        """Its name."""
        ...

    @property
    def path(self) -> Path:
        """Where it is."""
        ...


class KnownFiles:
    """The files that a memory has, `live` records by name, for knowing those again that have other names by now. `text` gives
    the text of a record; the memory lies in the folder `around`."""

    def __init__(self, live: Iterable[DocumentRecord], around: Path, text: Callable[[DocumentRecord], str]) -> None:
        self._live = {record.source: record for record in live if record.source.startswith(FILE)}
        self._around, self._text = around, text

    def earlier_name(self, path: Path, root: str, files: Sequence[File], read: Callable[[Path], bytes]) -> str | None:
        """What a file at `path`, or a folder with these `files`, is called in the memory, if it is not `root`. None where
        it is, or is new: then `root` is its name. `read` gives a file's bytes, none where it cannot be read."""
        if root in self._names or any(file.uri in self._live for file in files):
            return None
        for name in sorted(self._by_last_part.get(printable(path.name), ())):
            if not place_of(name, self._around).exists() and self._alike(root, name, files, read):
                return name
        return None

    @cached_property
    def _names(self) -> set[str]:
        """All files, and the folders that hold them."""
        return {name for source in self._live for name in _and_above(source)}

    @cached_property
    def _by_last_part(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self._names:
            found.setdefault(name.rpartition("/")[2].removeprefix(FILE), []).append(name)
        return found

    def _alike(self, root: str, name: str, files: Sequence[File], read: Callable[[Path], bytes]) -> bool:
        """Whether most of what the memory has under `name` is among these files."""
        there = sum(source == name or source.startswith(f"{name}/") for source in self._live)
        known = [(file, self._live.get(renamed(file.uri, root, name))) for file in files]
        shared = [(file, record) for file, record in known if record is not None]
        judged = _spread(shared, _JUDGED)
        same = sum(self._same(read(file.path), record) for file, record in judged)
        return bool(judged) and 2 * same * len(shared) >= len(judged) * there

    def _same(self, data: bytes, record: DocumentRecord) -> bool:
        """Whether a file says what a document says, or has most of its lines."""
        if digest(data) == record.text_hash:
            return True
        if max(len(data), record.chars) > _COMPARED_BYTES:
            return False
        try:
            texts = data.decode("utf-8", "replace"), self._text(record)
        except DetailPruned:
            return False
        new, old = (Counter(filter(None, map(str.strip, text.split("\n")))) for text in texts)
        return 2 * (new & old).total() >= max(new.total(), old.total(), 1)


def _and_above(source: str) -> Iterable[str]:
    """A file's name and those of the folders that it lies in."""
    parts = source.split("/")
    first = 4 if source.startswith(FILE + "///") else 1
    return ("/".join(parts[:count]) for count in range(first, len(parts) + 1))


def _spread(items: Sequence[T], limit: int) -> Sequence[T]:
    """At most `limit` of the items, from all over."""
    return items if len(items) <= limit else [items[at * len(items) // limit] for at in range(limit)]
