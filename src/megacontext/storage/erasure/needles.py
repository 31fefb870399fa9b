"""Finding many byte strings in many bytes, at any offset.

Each needle is found by an anchor: its most telling run of 1, 2 or 4 words of 4 bytes. The words of the haystack are taken at
all four offsets; a table lets nearly all of them pass by, and what is left is compared byte by byte. Some 50 ms per
megabyte, whatever the number of needles.
"""

from __future__ import annotations

import mmap
from collections import Counter
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
# An anchor lies at one of a needle's first bytes.
_FIRST = 128
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
        # Under each anchor the needles by where in them it lies and how long they are: one look-up for all of a kind.
        self._under: dict[bytes, dict[tuple[int, int], dict[bytes, int]]] = {}
        for number, at in zip(numbers, _offsets([needles[number].data for number in numbers], width), strict=True):
            data = needles[number].data
            places = self._under.setdefault(data[at : at + 4 * width], {})
            places.setdefault((at, len(data)), {})[data] = number
        anchors = np.frombuffer(b"".join(self._under), "<u4").reshape(-1, width)
        self._table = np.zeros(1 << _BITS, np.bool_)
        self._table[self._slots(anchors.T)] = True

    def found(self, view: memoryview, words: Array, start: int) -> Iterator[tuple[int, int]]:
        """What lies where among words of `view`, whose byte `start` is their first: (number of the needle, its first byte)."""
        count = len(words) - self.width + 1
        if count <= 0:
            return
        passed = self._table.take(self._slots([words[at : at + count] for at in range(min(self.width, 2))]))
        for at in np.flatnonzero(passed).tolist():
            places = self._under.get(words[at : at + self.width].tobytes())
            for (offset, size), numbers in places.items() if places else ():
                begin = start + 4 * at - offset
                number = numbers.get(bytes(view[begin : begin + size])) if begin >= 0 else None
                if number is not None:
                    yield number, begin

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
        # Equal bytes are one needle, of the first kind that has them.
        first = {each.data: each for each in reversed([each for each in needles if len(each.data) >= SHORTEST])}
        self.needles = tuple(reversed(first.values()))
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
                    for number, begin in group.found(view, chunk, shift + 4 * start):
                        if not self._excused(view, begin, self.needles[number]):
                            counts[number] = counts.get(number, 0) + 1
        return counts

    @staticmethod
    def _excused(view: memoryview, begin: int, needle: Needle) -> bool:
        return any(
            begin >= offset and view[begin - offset : begin - offset + len(whole)] == whole for offset, whole in needle.excuses
        )

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


def _offsets(needles: Sequence[bytes], width: int) -> list[int]:
    """Where the most telling anchor of each needle starts: one that few of the others have, with many different bytes."""
    places = [range(0, min(len(data) - 4 * width, _FIRST) + 1, 4) for data in needles]
    common = Counter(data[at : at + 4 * width] for data, within in zip(needles, places, strict=True) for at in within)

    def worth(data: bytes, at: int) -> tuple[int, int]:
        anchor = data[at : at + 4 * width]
        return common[anchor], -len(set(anchor))

    return [min(within, key=lambda at: worth(data, at)) for data, within in zip(needles, places, strict=True)]
