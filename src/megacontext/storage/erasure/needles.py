"""Finding many byte strings in many bytes, at any offset.

Each needle is found by an anchor: its most telling run of 1, 2 or 4 words of 4 bytes. The words of the haystack are taken at
all four offsets; a table lets nearly all of them pass by, and what is left is compared byte by byte. Some 50 ms per
megabyte, whatever the number of needles.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megacontext.storage.tensors import Array

TOKENS, GISTS, NAMES, TEXTS = "tokens", "gists", "names", "texts"
KINDS = (TOKENS, GISTS, NAMES, TEXTS)
# Shorter ones turn up by chance.
SHORTEST = 4
# Words that are looked at together: what is made of them fits a core's cache.
_CHUNK = 1 << 15
_BITS = 18
# Odd numbers, of the fractional parts of square roots of primes: any would do.
_FACTORS = np.array([0x6A09E667, 0xBB67AE85], np.uint32)


@dataclass(frozen=True)
class Needle:
    """Bytes of a `kind`. An occurrence within one of the `excuses` (where the needle lies in a longer string, and that string)
    is something else's."""

    kind: str
    data: bytes
    excuses: tuple[tuple[int, bytes], ...] = field(default=(), compare=False)


class _Anchors:
    """Needles whose anchors have `width` words."""

    def __init__(self, width: int, numbers: list[int], needles: Sequence[Needle]) -> None:
        self.width = width
        offsets = [_best_offset(needles[number].data, width) for number in numbers]
        self._at: dict[bytes, list[tuple[int, int]]] = {}
        for number, at in zip(numbers, offsets, strict=True):
            self._at.setdefault(needles[number].data[at : at + 4 * width], []).append((number, at))
        anchors = np.frombuffer(b"".join(self._at), "<u4").reshape(-1, width)
        self._table = np.zeros(1 << _BITS, np.bool_)
        self._table[self._slots(anchors.T)] = True

    def candidates(self, words: Array) -> Iterator[tuple[int, int, int]]:
        """Where an anchor lies among words: (index of the word, number of the needle, the anchor's offset in it)."""
        count = len(words) - self.width + 1
        if count <= 0:
            return
        passed = self._table.take(self._slots([words[at : at + count] for at in range(min(self.width, 2))]))
        for at in np.flatnonzero(passed).tolist():
            for number, offset in self._at.get(words[at : at + self.width].tobytes(), ()):
                yield at, number, offset

    @staticmethod
    def _slots(columns: Sequence[Array] | Array) -> Array:
        """Where in the table the first two words of an anchor (or its only one) lead."""
        slots: Array = columns[0] * _FACTORS[0]
        if len(columns) > 1:
            slots += columns[1] * _FACTORS[1]
        slots >>= np.uint32(32 - _BITS)
        return slots


class Finder:
    """Finds needles; those of under 4 bytes are never found."""

    def __init__(self, needles: Iterable[Needle]) -> None:
        self.needles = tuple(dict.fromkeys(each for each in needles if len(each.data) >= SHORTEST))
        groups: dict[int, list[int]] = {}
        for number, needle in enumerate(self.needles):
            size = len(needle.data)
            groups.setdefault(4 if size >= 16 else 2 if size >= 8 else 1, []).append(number)
        self._groups = [_Anchors(width, numbers, self.needles) for width, numbers in sorted(groups.items())]

    def find(self, data: bytes | memoryview | mmap.mmap) -> dict[int, int]:
        """The numbers of the needles in `data`, and how often each occurs without an excuse."""
        counts: dict[int, int] = {}
        view = memoryview(data)
        for shift in range(min(4, len(view)) if self._groups else 0):
            words = np.frombuffer(view, "<u4", (len(view) - shift) // 4, shift)
            for start in range(0, len(words), _CHUNK):
                for group in self._groups:
                    chunk = words[start : start + _CHUNK + group.width - 1]
                    for at, number, offset in group.candidates(chunk):
                        begin = shift + 4 * (start + at) - offset
                        if self._is_at(view, begin, self.needles[number]):
                            counts[number] = counts.get(number, 0) + 1
        return counts

    @staticmethod
    def _is_at(view: memoryview, begin: int, needle: Needle) -> bool:
        if begin < 0 or view[begin : begin + len(needle.data)] != needle.data:
            return False
        for offset, whole in needle.excuses:
            if begin >= offset and view[begin - offset : begin - offset + len(whole)] == whole:
                return False
        return True

    def find_in_file(self, path: Path) -> dict[int, int]:
        """The same for a file; nothing if it is gone by now."""
        try:
            with open(path, "rb") as file:
                if not file.seek(0, 2):
                    return {}
                # Not closed: what is found goes by views into it, and the last of them ends it.
                return self.find(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        except FileNotFoundError:
            return {}

    def without(self, numbers: Iterable[int]) -> Finder:
        """A finder without some of the needles."""
        less = set(numbers)
        return Finder(needle for number, needle in enumerate(self.needles) if number not in less)

    def by_kind(self, numbers: Iterable[int]) -> Mapping[str, int]:
        """How many needles of each kind."""
        kinds = [self.needles[number].kind for number in numbers]
        return {kind: kinds.count(kind) for kind in KINDS}


def _best_offset(data: bytes, width: int) -> int:
    """Where the most telling anchor starts: the one with the most different bytes."""
    last = len(data) - 4 * width
    return max(range(0, min(last, 128) + 1, 4), key=lambda at: len(set(data[at : at + 4 * width])))
