"""Recall lines: a fact about a made-up name is stated far back and asked for later, as Python code would have it.

``QUAVIM_LIMIT = 48213`` early in the window, ``assert QUAVIM_LIMIT == 48213`` late: nothing but the far context tells the
value. Several facts of a window share names' shapes, so that the right one has to be found among its like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_STARTS = ("b", "br", "d", "dr", "f", "fl", "g", "h", "k", "kr", "l", "m", "n", "p", "qu", "r", "s", "st", "t", "v", "w", "z")
_MIDDLES = ("a", "e", "i", "o", "u", "ai", "ei", "ou")
_ENDS = ("", "", "n", "m", "x", "r", "l", "sk", "rt", "nd")

_FORMS: tuple[tuple[str, str], ...] = (
    ("\n{NAME}_LIMIT = {number}\n", "\nassert {NAME}_LIMIT == {number}\n"),
    ('\nregistry["{name}"] = "{other}"\n', '\nassert registry["{name}"] == "{other}"\n'),
    ("\ndef {name}_code():\n    return {number}\n", "\nassert {name}_code() == {number}\n"),
    ("\nfrom {other} import {third} as {name}\n", '\nassert {name}.__module__ == "{other}.{third}"\n'),
    ('\nclass {Name}:\n    {third} = "{other}"\n', '\nassert {Name}.{third} == "{other}"\n'),
    ("\n{name} = {Other}({number})\n", "\nassert repr({name}) == '{Other}({number})'\n"),
)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """``told`` and ``asked``: the two lines as text."""

    told: str
    asked: str


def draw_fact(rng: np.random.Generator) -> Fact:
    """A fact of a random form about random names; the same generator gives the same one."""
    name, other, third = (_word(rng) for _ in range(3))
    fields = {
        "name": name,
        "NAME": name.upper(),
        "Name": name.capitalize(),
        "other": other,
        "Other": other.capitalize(),
        "third": third,
        "number": int(rng.integers(10_000, 100_000)),
    }
    told, asked = _FORMS[int(rng.integers(len(_FORMS)))]
    return Fact(told=told.format_map(fields), asked=asked.format_map(fields))


def _word(rng: np.random.Generator) -> str:
    """Two or three syllables."""
    count = int(rng.integers(2, 4))
    return "".join(parts[int(rng.integers(len(parts)))] for _ in range(count) for parts in (_STARTS, _MIDDLES, _ENDS))


class RecallLines:
    """Writes facts and questions over the tokens of a window, through a tokenizer.

    ``most``: facts a window. Every line is encoded by itself; special tokens are left out.
    """

    def __init__(self, tokenizer: Any, *, most: int = 4) -> None:
        self._tokenizer = tokenizer
        self._most = most

    def plant(self, tokens: IntArray, rng: np.random.Generator, *, probability: float, earliest: int | None = None) -> IntArray:
        """A copy of ``tokens`` int64 [T] in which, with ``probability``, facts are told and later asked for.

        Facts end before ``earliest`` (None: the middle), questions begin there or later, and no two lines overlap. A fact for
        which there is no room is left out whole.
        """
        result = tokens.copy()
        if rng.random() >= probability:
            return result
        border = len(tokens) // 2 if earliest is None else earliest
        taken = np.zeros(len(tokens), dtype=np.bool_)
        for _ in range(int(rng.integers(1, self._most + 1))):
            fact = draw_fact(rng)
            told, asked = self._encode(fact.told), self._encode(fact.asked)
            early = _free(taken, rng, 0, border, len(told))
            late = _free(taken, rng, border, len(tokens), len(asked))
            if early is None or late is None:
                continue
            for start, line in ((early, told), (late, asked)):
                result[start : start + len(line)] = line
                taken[start : start + len(line)] = True
        return result

    def _encode(self, text: str) -> IntArray:
        return np.asarray(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)


def _free(taken: npt.NDArray[np.bool_], rng: np.random.Generator, first: int, stop: int, length: int) -> int | None:
    """A random place for ``length`` tokens within [first, stop) that touches nothing taken, or None."""
    room = stop - first - length + 1
    if room < 1:
        return None
    filled = np.concatenate([[0], np.cumsum(taken[first:stop])])
    places = np.flatnonzero(filled[length : length + room] == filled[:room])
    return None if not len(places) else first + int(places[int(rng.integers(len(places)))])
