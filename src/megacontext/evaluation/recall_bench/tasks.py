"""What is told far back and asked for later, in the surface form of code. RULER-shaped (https://arxiv.org/abs/2404.06654).

Names are made up, so that nothing but the history tells the answer. The forms are those that a small code model can do at all
when it reads everything raw (docs/log.md, 2026-11-24): where a rare pair of tokens stands right before the value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

_STARTS = ("b", "br", "d", "dr", "f", "fl", "g", "h", "k", "kr", "l", "m", "n", "p", "qu", "r", "s", "st", "t", "v", "w", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "ou")
_ENDS = ("", "", "n", "m", "x", "r", "l", "sk", "rt", "nd")
FORMS = (
    ("\nfrom .{key} import {key} as {value}\n", "\nfrom .{key} import {key} as", " {value}"),
    (
        "\ntry:\n    from .{key} import {key} as {value}\nexcept ImportError:\n    pass\n",
        "\ntry:\n    from .{key} import {key} as",
        " {value}",
    ),
)
"""Told, asked and answer: imports under another name."""
LIKE, VALUES, LINKS = 3, 2, 2
"""Further keys of a multi-key case, values of a multi-value case, links of a variable-tracking case."""
_TRIES = 16
"""Words from which a short one is taken."""
COUNTS = (8, 4, 2)
"""How often the words of a most-frequent case occur."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """``told``: lines that stand in the history; ``asked``: the end of what the model reads; ``answers``: what has to come, all
    of them; ``others``: answers that are as likely to whoever does not know."""

    task: str
    told: tuple[str, ...]
    asked: str
    answers: tuple[str, ...]
    others: tuple[str, ...] = ()

    def judge(self, text: str) -> bool:
        """Whether greedy output ``text`` is right: it begins with the one answer, or holds each of several."""
        if len(self.answers) > 1:
            return all(answer.strip() in text for answer in self.answers)
        answer = self.answers[0]
        return text.startswith(answer) and not text[len(answer) : len(answer) + 1].isidentifier()


class Words:
    """Made-up words, no two alike, and no two whose last token is the same within one case."""

    def __init__(self, tokenizer: Any, rng: np.random.Generator) -> None:
        self._tokenizer, self._rng = tokenizer, rng
        self._known: set[str] = set()

    def draw(self, count: int = 1, *, short: bool = False) -> list[str]:
        """``count`` words; ``short`` ones take few tokens, as values do: every token more is a chance to slip."""
        ends: set[int] = set()
        words: list[str] = []
        while len(words) < count:
            drawn = [_word(self._rng) for _ in range(_TRIES if short else 1)]
            word = min(drawn, key=lambda each: len(self._tokens(each)))
            end = self._tokens(word)[-1]
            if word not in self._known and end not in ends and word.isidentifier():
                self._known.add(word)
                ends.add(end)
                words.append(word)
        return words

    def _tokens(self, word: str) -> list[int]:
        ids: list[int] = self._tokenizer(" " + word, add_special_tokens=False)["input_ids"]
        return ids

    def form(self) -> tuple[str, str, str]:
        """One of the forms."""
        return FORMS[int(self._rng.integers(len(FORMS)))]


def _word(rng: np.random.Generator) -> str:
    return "".join(_syllable(rng) for _ in range(int(rng.integers(2, 4))))


def _syllable(rng: np.random.Generator) -> str:
    return "".join(str(rng.choice(parts)) for parts in (_STARTS, _VOWELS, _ENDS))


def single_key(words: Words) -> Case:
    """One key and its value."""
    return _keyed("single_key", words, 0)


def multi_key(words: Words) -> Case:
    """A key among others of the same form."""
    return _keyed("multi_key", words, LIKE)


def _keyed(task: str, words: Words, more: int) -> Case:
    line, asked, answer = words.form()
    keys, values = words.draw(1 + more), words.draw(1 + more, short=True)
    pairs = [{"key": key, "value": value} for key, value in zip(keys, values, strict=True)]
    return Case(
        task=task,
        told=tuple(line.format_map(pair) for pair in pairs),
        asked=asked.format_map(pairs[0]),
        answers=(answer.format_map(pairs[0]),),
        others=tuple(answer.format_map(pair) for pair in pairs[1:]),
    )


def multi_value(words: Words) -> Case:
    """One key with several values, all of which are wanted."""
    line, asked, answer = words.form()
    (key,), values = words.draw(), words.draw(VALUES, short=True)
    pairs = [{"key": key, "value": value} for value in values]
    told = tuple(line.format_map(pair) for pair in pairs)
    return Case(
        task="multi_value", told=told, asked=asked.format(key=key), answers=tuple(answer.format_map(pair) for pair in pairs)
    )


def variable_tracking(words: Words) -> Case:
    """A value that is passed on from variable to variable."""
    names, (value,) = words.draw(1 + LINKS), words.draw(short=True)
    links = [f"\n{after} = {before}\n" for before, after in pairwise(names)]
    told = (f"\n{names[0]} = '{value}'\n", *links)
    return Case(task="variable_tracking", told=told, asked=f"\nassert {names[-1]} == '", answers=(value,), others=tuple(names))


def frequent_words(words: Words) -> Case:
    """Which of several calls occurs most often."""
    (name,), values = words.draw(), words.draw(len(COUNTS), short=True)
    told = tuple(f"\n{name}({value})\n" for value, count in zip(values, COUNTS, strict=True) for _ in range(count))
    return Case(task="frequent_words", told=told, asked=f"\n{name}(", answers=(values[0],), others=tuple(values[1:]))


TASKS: dict[str, Callable[[Words], Case]] = {
    "single_key": single_key,
    "multi_key": multi_key,
    "multi_value": multi_value,
    "variable_tracking": variable_tracking,
    "frequent_words": frequent_words,
}


def draw_cases(task: str, count: int, tokenizer: Any, seed: int) -> list[Case]:
    """``count`` cases of a task; those of one seed share no word, so that one history can hold them all."""
    words = Words(tokenizer, np.random.default_rng((seed, list(TASKS).index(task))))
    return [TASKS[task](words) for _ in range(count)]
