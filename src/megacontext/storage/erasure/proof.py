"""The proof: every file of a memory, byte by byte."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megacontext.storage.erasure.needles import GISTS, KINDS, NAMES, TEXTS, TOKENS, Finder
from megacontext.storage.place import ERASING

# Written when the memory was made, guarded by their hashes, and without anything of a document.
_TOKENIZER = "tokenizer"


@dataclass
class Scan:
    """What was found: `files` of `bytes` were read; `found` maps a file, relative to the memory, to the numbers of the needles
    in it and how often each occurs."""

    files: int = 0
    bytes: int = 0
    found: dict[str, dict[int, int]] = field(default_factory=dict)

    @property
    def numbers(self) -> set[int]:
        """The needles that were found at all."""
        return {number for counts in self.found.values() for number in counts}

    def report(self, finder: Finder, leave_out: Collection[int] = ()) -> dict[str, Any]:
        """The counts for a receipt: by kind, how many needles there are, how many were found, and how often."""
        numbers = self.numbers - set(leave_out)
        looked = finder.by_kind(number for number in range(len(finder.needles)) if number not in set(leave_out))
        found = finder.by_kind(numbers)
        times = dict.fromkeys(KINDS, 0)
        for counts in self.found.values():
            for number, count in counts.items():
                if number in numbers:
                    times[finder.needles[number].kind] += count
        kinds = {kind: {"sought": looked[kind], "found": found[kind], "occurrences": times[kind]} for kind in KINDS}
        return {"files": self.files, "bytes": self.bytes, **kinds}

    def where(self, finder: Finder) -> str:
        """The first few places, for a message."""
        places = [
            f"{path} ({', '.join(sorted({finder.needles[number].kind for number in counts}))})"
            for path, counts in sorted(self.found.items())
        ]
        return ", ".join(places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else "")


def scan(root: Path, finder: Finder, originals: Collection[str] = (), elsewhere: Iterable[str] = ()) -> Scan:
    """Looks for the needles in every file of the memory at `root`, whatever it is, and in files `elsewhere`, which are of it,
    too. In `originals`, the texts of documents that stay, names and texts are not looked for: they are those documents' own."""
    done = Scan()
    for path in (*files_of(root), *map(Path, elsewhere)):
        counts = finder.find_in_file(path)
        if path.name in originals:
            counts = {number: count for number, count in counts.items() if finder.needles[number].kind in (TOKENS, GISTS)}
        done.files += 1
        done.bytes += path.stat().st_size if path.exists() else 0
        if counts:
            done.found[path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)] = counts
    return done


def files_of(root: Path) -> Iterator[Path]:
    """All files of a memory but for its tokenizer's and the note that it is being erased from."""
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if path.is_file() and not path.is_symlink() and inside.parts[0] != _TOKENIZER and inside.name != ERASING:
            yield path


def nothing_found(report: Mapping[str, Any]) -> bool:
    """Whether a scan's report has no finding."""
    return not any(report[kind]["found"] for kind in (TOKENS, GISTS, NAMES, TEXTS))
