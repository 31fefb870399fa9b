"""Collect text, drop duplicates, split by whole package.

A *package* is the unit of splitting: a top-level folder or module of the standard library or of
``site-packages``. A held-out package gives no file, and no near-copy of one of its files, to
training: shingles (hashes of three consecutive non-blank lines) of the held-out files are collected
first, and a training file that shares more than ``leak_overlap`` of its shingles with them is
dropped. The same rule against already accepted training files removes near-duplicates; files with the
same text as an accepted one go first.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megacontext.errors import DatasetError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

STDLIB_TEST = frozenset(
    {"asyncio", "email", "xml", "multiprocessing", "logging", "argparse", "tarfile", "pathlib"}
    | {"http", "typing", "zipfile", "ipaddress", "statistics", "mailbox", "fractions"}
)
"""Standard-library packages that no training, tokenizer included, ever sees: reporting only."""

STDLIB_VALIDATION = frozenset({"unittest", "json", "urllib", "configparser", "optparse", "csv"})
"""Standard-library packages for choices during development."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One text file of the corpus; ``package`` is the unit of splitting, ``name`` its path from the root's name on."""

    package: str
    name: str
    path: Path
    text: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What to collect and how to split it.

    ``roots``: folders whose direct children are packages; empty means the running interpreter's
    standard library and its ``site-packages``. Sizes are in bytes, overlaps are shares of shingles.
    """

    roots: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = (".py",)
    min_bytes: int = 400
    max_bytes: int = 200_000
    held_out_percent: int = 4
    leak_overlap: float = 0.2
    duplicate_overlap: float = 0.6
    max_package_bytes: int = 6_000_000

    def __post_init__(self) -> None:
        if not 0 < self.held_out_percent < 50:
            raise DatasetError("held_out_percent must lie between 1 and 49")


def default_roots() -> tuple[Path, ...]:
    """The running interpreter's standard library and ``site-packages``."""
    paths = sysconfig.get_paths()
    return tuple(dict.fromkeys((Path(paths["stdlib"]), Path(paths["purelib"]))))


def split_of(package: str, held_out_percent: int) -> Split:
    """The split of a whole package: a fixed list for the standard library, a hash elsewhere."""
    origin, _, name = package.partition("/")
    if origin == "stdlib":
        if name in STDLIB_TEST:
            return "test"
        return "validation" if name in STDLIB_VALIDATION else "train"
    bucket = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()) % 100
    if bucket < held_out_percent:
        return "test"
    return "validation" if bucket < 2 * held_out_percent else "train"


def read_text(path: Path) -> str | None:
    """The file's text, or None where it is not UTF-8 text or cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return None if "\0" in text else text.replace("\r\n", "\n")


def collect(config: CorpusConfig, seen: Counter[str] | None = None) -> Iterator[SourceFile]:
    """Every candidate file under the roots, in sorted order, tests and vendored copies left out.

    ``seen`` counts ``files`` looked at and, of those, ``not_text``, ``too_short``, ``too_long`` and ``over_package_limit``.
    DatasetError where a root is no folder, and at the end where no file held usable text.
    """
    roots = tuple(Path(r) for r in config.roots) or default_roots()
    seen = Counter() if seen is None else seen
    for root in roots:
        if not root.is_dir():
            raise DatasetError(f"{root} is not a folder: name folders that hold source packages")
    found = False
    for root in roots:
        origin = "stdlib" if is_standard_library(root) else root.resolve().name
        for child in sorted(root.iterdir()):
            if child.name.startswith((".", "__")) or child.name in _SKIPPED_PACKAGES:
                continue
            package = f"{origin}/{child.stem if child.is_file() else child.name}"
            for file in _package_files(child, root, package, config, seen):
                found = True
                yield file
    if not found:
        raise DatasetError(_nothing_found(roots, config, seen))


def is_standard_library(root: Path) -> bool:
    """Whether ``root`` is the library folder of some Python, whose packages are split by a fixed list."""
    return (root / "os.py").is_file() and (root / "asyncio").is_dir()


def _package_files(child: Path, root: Path, package: str, config: CorpusConfig, seen: Counter[str]) -> Iterator[SourceFile]:
    budget = config.max_package_bytes
    paths = [child] if child.is_file() else sorted(child.rglob("*"))
    for path in paths:
        inside = path.relative_to(root)
        if path.suffix not in config.suffixes or not _SKIPPED_PARTS.isdisjoint(inside.parts) or not path.is_file():
            continue
        seen["files"] += 1
        size = path.stat().st_size
        text = read_text(path) if config.min_bytes <= size <= config.max_bytes else None
        if text is None:
            seen["too_short" if size < config.min_bytes else "too_long" if size > config.max_bytes else "not_text"] += 1
            continue
        budget -= len(text)
        if budget < 0:
            seen["over_package_limit"] += 1
            return
        yield SourceFile(package=package, name=f"{package.partition('/')[0]}/{inside.as_posix()}", path=path, text=text)


def _nothing_found(roots: Iterable[Path], config: CorpusConfig, seen: Counter[str]) -> str:
    places, kinds = ", ".join(map(str, roots)), ", ".join(config.suffixes)
    if not seen["files"]:
        return f"no files named {kinds} in {places}: name other folders or other suffixes"
    return (
        f"no usable text in {places}: of {seen['files']} files named {kinds}, {seen['not_text']} are binary or not UTF-8, "
        f"{seen['too_short']} shorter than {config.min_bytes} bytes, {seen['too_long']} longer than {config.max_bytes}"
    )


_SKIPPED_PACKAGES = frozenset({"site-packages", "test", "megacontext", "idlelib", "lib2to3"})
_SKIPPED_PARTS = frozenset({"test", "tests", "_vendor", "vendor", "vendored", "__pycache__"})


def shingles(text: str) -> frozenset[int]:
    """Hashes of every three consecutive non-blank lines, stripped."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    return frozenset(
        int.from_bytes(hashlib.blake2b("\n".join(lines[i : i + 3]).encode(), digest_size=8).digest())
        for i in range(max(1, len(lines) - 2))
    )


def deduplicate_and_split(
    files: Iterable[SourceFile], config: CorpusConfig
) -> tuple[dict[Split, list[SourceFile]], dict[str, int]]:
    """Split by package and drop exact and near duplicates; returns the splits and the counts.

    Held-out splits are read first, so that a copy of a held-out file is dropped from training and
    never the other way round.
    """
    by_split: dict[Split, list[SourceFile]] = {split: [] for split in SPLITS}
    for file in files:
        by_split[split_of(file.package, config.held_out_percent)].append(file)
    counts = {"identical": 0, "leaks": 0, "duplicates": 0}
    held_out: set[int] = set()
    result: dict[Split, list[SourceFile]] = {}
    for split in ("test", "validation", "train"):
        seen: set[int] = set()
        texts: set[bytes] = set()
        kept: list[SourceFile] = []
        for file in by_split[split]:
            marks, text = shingles(file.text), hashlib.blake2b(file.text.encode(), digest_size=16).digest()
            if len(marks & held_out) > config.leak_overlap * len(marks):
                counts["leaks"] += 1
            elif text in texts:
                counts["identical"] += 1
            elif len(marks & seen) > config.duplicate_overlap * len(marks):
                counts["duplicates"] += 1
            else:
                kept.append(file)
                seen |= marks
                texts.add(text)
        if split != "train":
            held_out |= seen
        result[split] = kept
    for split in SPLITS:
        if not result[split]:
            raise DatasetError(
                f"the {split} split is empty: add folders or packages to the corpus, or hold out more than "
                f"{config.held_out_percent} percent of the packages"
            )
    return {split: result[split] for split in SPLITS}, counts
