"""From paths, folders, standard input and strings to texts with a name, or a reason why not.

A *URI* names a source for good: `file:` and a path (see `source_names`), `stdin:`, or `text:` and a name.
What cannot be read is reported and never stops the rest.
"""

from __future__ import annotations

import mimetypes
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from megacontext.engine.source_names import KnownFiles, below, name_of, renamed
from megacontext.errors import ConfigError, IngestError

STDIN = "-"
# Folders that hold what a machine made or fetched, whatever project they lie in.
MACHINE_FOLDERS = frozenset({"__pycache__", "node_modules", "__pypackages__"})
PLAIN = "text/plain"


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What is read. `max_bytes` is the largest file; `skip_folders` are names of folders that are not entered;
    `hidden` enters folders and reads files whose names start with a dot, which otherwise only an explicit root does."""

    max_bytes: int = 64 * 2**20
    skip_folders: frozenset[str] = MACHINE_FOLDERS
    hidden: bool = False

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ConfigError(f"max_bytes must be at least 1, not {self.max_bytes}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A text to ingest, with its line ends as they were. Where it comes from another memory, it has its `version` there (0: the
    next one) and `ingested_at`, when it came in (seconds since 1970; None: now)."""

    uri: str
    text: str = field(repr=False)
    media_type: str = PLAIN
    tags: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    version: int = 0
    ingested_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A source that is left out, and why, as the end of a sentence ("it is …")."""

    uri: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Text:
    """A string as an input of its own, under the URI `text:<name>`."""

    name: str
    text: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file as listed: its `path`, and its size in bytes at that time."""

    uri: str
    path: Path
    size: int


@dataclass(frozen=True, kw_only=True)
class _Stdin:
    uri: str = "stdin:"


Item = FoundFile | Skipped | Source | _Stdin
Input = str | Path | Text


class Sources:
    """What was found, in order, read one by one while iterating (each file anew in every iteration).

    `size` is what there is to read, in bytes, as far as it is known before reading: enough for a progress bar. `recognised`
    pairs what was given with the name that it has in the memory, where it was not known by its name.
    """

    def __init__(
        self,
        items: Iterable[Item],
        config: SourceConfig,
        tags: tuple[str, ...],
        stdin: BinaryIO | None,
        recognised: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.items = tuple(items)
        self.size = sum(_size(item) for item in self.items)
        self.recognised = tuple(recognised)
        self._config = config
        self._tags = tags
        self._stdin = stdin

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Source | Skipped]:
        for item in self.items:
            if isinstance(item, FoundFile):
                yield self._read(item)
            elif isinstance(item, _Stdin):
                data = (self._stdin or sys.stdin.buffer).read(self._config.max_bytes + 1)
                yield self._source(item.uri, data, PLAIN)
            else:
                yield item

    def _read(self, found: FoundFile) -> Source | Skipped:
        try:
            data = _read_regular(found.path, self._config.max_bytes)
        except OSError as error:
            return Skipped(uri=found.uri, reason=_reason(error))
        except _NotRegular:
            return Skipped(uri=found.uri, reason="not a regular file; pipe it to '-' to add what it gives")
        media_type = mimetypes.guess_type(found.path.name)[0] or PLAIN
        return self._source(found.uri, data, media_type)

    def _source(self, uri: str, data: bytes, media_type: str) -> Source | Skipped:
        if len(data) > self._config.max_bytes:
            return Skipped(uri=uri, reason=f"larger than {self._config.max_bytes} bytes")
        if not data:
            return Skipped(uri=uri, reason="empty")
        if b"\0" in data:
            return Skipped(uri=uri, reason="binary: it holds NUL bytes")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            return Skipped(uri=uri, reason=f"not UTF-8 text (byte {error.start})")
        return Source(uri=uri, text=text, media_type=media_type, tags=self._tags)


def find_sources(
    inputs: Iterable[Input],
    *,
    tags: Iterable[str] = (),
    config: SourceConfig | None = None,
    stdin: BinaryIO | None = None,
    around: Path | None = None,
    known: KnownFiles | None = None,
) -> Sources:
    """Lists what `inputs` hold: files, folders (recursively, in sorted order), '-' for standard input, or `Text`; what is given
    twice, once.

    Links to folders are not followed, so there are no loops and nothing is read twice; links to files are. `stdin` None
    means the process's own. The memory lies in the folder `around`; files that it has under other names are `known`.
    Raises IngestError for a path that does not exist, and for two texts of one name.
    """
    config, tags = config or SourceConfig(), tuple(tags)
    around = around.resolve() if around is not None else None
    items: dict[str, Item] = {}
    recognised: list[tuple[str, str]] = []
    for given in inputs:
        if isinstance(given, Text):
            _claim(items, Source(uri=f"text:{given.name}", text=given.text, tags=tags))
        elif given == STDIN:
            _claim(items, _Stdin())
        else:
            root = _resolved(Path(given))
            uri = name_of(root, around)
            found = list(_walk(root, uri, config))
            if known is not None and (earlier := _earlier(known, root, uri, found, config)) is not None:
                found = [replace(item, uri=renamed(item.uri, uri, earlier)) for item in found]
                recognised.append((str(given), earlier))
            for item in found:
                items.setdefault(item.uri, item)
    return Sources(items.values(), config, tags, stdin, recognised)


def named(source: Source | Skipped, name: str | None, labels: tuple[str, ...]) -> Source | Skipped:
    """Standard input under a `name` of its own (None: as it is), and texts with their labels."""
    if name is not None and source.uri == "stdin:":
        source = replace(source, uri=f"text:{name}")
    return source if isinstance(source, Skipped) else replace(source, labels=labels)


def _claim(items: dict[str, Item], item: Source | _Stdin) -> None:
    if item.uri in items:
        raise IngestError(f"{item.uri} is given twice; give each text a name of its own")
    items[item.uri] = item


def _resolved(path: Path) -> Path:
    """Where a folder really is, and where a file, or a link to one, really stands."""
    try:
        path = path.expanduser()
        real = path.resolve(strict=True)
        return real if real.is_dir() else path.parent.resolve() / path.name
    except FileNotFoundError as error:
        raise IngestError(f"{path} does not exist; nothing was added") from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = _reason(error) if isinstance(error, OSError) else str(error)
        raise IngestError(f"{path} cannot be read ({reason}); nothing was added") from error


def _earlier(known: KnownFiles, root: Path, uri: str, found: Iterable[FoundFile | Skipped], config: SourceConfig) -> str | None:
    def read(path: Path) -> bytes:
        try:
            return _read_regular(path, config.max_bytes)
        except (OSError, _NotRegular):
            return b""

    return known.earlier_name(root, uri, [item for item in found if isinstance(item, FoundFile)], read)


def _walk(root: Path, uri: str, config: SourceConfig) -> Iterator[FoundFile | Skipped]:
    """A file called `uri`, or the files below a folder of that name; what is passed over is reported once, at its top."""
    if not root.is_dir():
        yield _listed(root, uri)
        return
    stack = [(root, uri)]
    while stack:
        folder, uri = stack.pop()
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            yield Skipped(uri=uri, reason=_reason(error))
            continue
        folders: list[tuple[Path, str]] = []
        for entry in entries:
            path, name = Path(entry.path), below(uri, entry.name)
            if reason := _passed_over(entry, config):
                yield Skipped(uri=name, reason=reason)
            elif _is_folder(entry):
                folders.append((path, name))
            else:
                yield _listed(path, name)
        stack.extend(reversed(folders))


def _listed(path: Path, uri: str) -> FoundFile | Skipped:
    try:
        status = path.stat()
    except OSError as error:
        return Skipped(uri=uri, reason=_reason(error))
    return FoundFile(uri=uri, path=path, size=status.st_size)


def _passed_over(entry: os.DirEntry[str], config: SourceConfig) -> str:
    """Why an entry of a folder is not looked at; '' if it is."""
    folder = _is_folder(entry)
    if entry.name.startswith(".") and not config.hidden:
        return "a hidden folder" if folder else "a hidden file"
    if not folder:
        return ""
    if entry.is_symlink():
        return "a link to a folder; add that folder itself"
    if entry.name in config.skip_folders:
        return "a folder of machine-made files"
    if os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
        return "a virtual environment"
    return ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


class _NotRegular(Exception):
    pass


def _read_regular(path: Path, max_bytes: int) -> bytes:
    """At most one byte more than `max_bytes`. Never waits: a pipe without a writer would block for good."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _NotRegular
        return file.read(max_bytes + 1)


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "gone, or a link to nothing"
    return (error.strerror or type(error).__name__).lower()


def _size(item: Item) -> int:
    if isinstance(item, FoundFile):
        return item.size
    return len(item.text.encode("utf-8", "surrogatepass")) if isinstance(item, Source) else 0
