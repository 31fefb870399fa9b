"""What is read: this Python's standard library, file by file, as far as it goes. Real code, nothing pasted or repeated."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext.engine.sources import Source

IntArray = npt.NDArray[np.int64]
SAMPLE = 50_000


class Code:
    """Files of the standard library one behind the other; each is given out once."""

    def __init__(self, tokenizer: Any) -> None:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = (path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts)
        self._files = ((path.relative_to(root).as_posix(), path) for path in files)
        self._tokenizer = tokenizer
        self._held = ""
        self._name = ""
        sample = self._take(SAMPLE)
        self._characters = len(sample) / max(1, len(self._ids(sample)))
        self._held = sample + self._held

    def sources(self, tokens: int) -> Iterator[Source]:
        """Documents of about so many tokens together; the last may be the first part of a file."""
        left = int(tokens * self._characters)
        part = 0
        while left > 0:
            text = self._take(min(left, SAMPLE))
            if not text:
                return
            left -= len(text)
            part += 1
            yield Source(uri=f"{self._name}#{tokens}-{part}", text=text)

    def tokens(self, count: int) -> IntArray:
        """The next tokens, int64 [count]; fewer at the end of all code."""
        found = self._ids(self._take(int(2 * count * self._characters) + 16))
        return np.asarray(found[:count], dtype=np.int64)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return ids

    def _take(self, characters: int) -> str:
        """The next characters, over the ends of files."""
        while len(self._held) < characters:
            self._name, path = next(self._files, ("", None))
            if path is None:
                break
            self._held += path.read_text(encoding="utf-8", errors="ignore")
        taken, self._held = self._held[:characters], self._held[characters:]
        return taken
