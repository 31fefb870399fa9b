"""Erased names: how they are spelled in files, and how they are taken out of messages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence

from megacontext.storage.erasure.needles import NAMES, TEXTS, Needle

REDACTED = "[erased]"
# Shorter spellings turn up by chance; then only a name's place in a record is looked for.
_TELLING = 8
# A word that may stand anywhere, also as a key of this format.
_PLAIN = re.compile(r"\w*")
_SHORTEST_BASENAME = 4


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _ascii(text: str) -> str:
    return json.dumps(text)[1:-1]


# As it is; as a string of JSON, with and without other letters than ASCII's; and within JSON that is a string of JSON again.
_SPELLINGS: tuple[Callable[[str], str], ...] = (
    str,
    _escaped,
    _ascii,
    lambda text: _escaped(_escaped(text)),
    lambda text: _ascii(_ascii(text)),
)


def name_needles(names: Iterable[str], kept: Iterable[str]) -> list[Needle]:
    """What to look for so as to find names; where one lies within one of the `kept` strings it is not meant."""
    strings = sorted(set(kept))
    needles = []
    for name in sorted(set(names) - {""}):
        longer = [string for string in strings if name in string]
        for spell in _SPELLINGS:
            data = spell(name).encode("utf-8")
            if len(data) >= _TELLING and not _PLAIN.fullmatch(name):
                needles.append(Needle(NAMES, data, _excuses(data, [spell(each).encode("utf-8") for each in longer])))
            field = f'"source":{json.dumps(name, ensure_ascii=False)}'
            needles.append(Needle(NAMES, spell(field).encode("utf-8")))
    return needles


def text_needles(texts: Iterable[str]) -> list[Needle]:
    """What to look for so as to find pieces of text; pieces that are too short to tell are left out."""
    found = {spell(text).encode("utf-8") for text in texts for spell in _SPELLINGS[:3]}
    return [Needle(TEXTS, data) for data in sorted(found) if len(data.strip()) >= 3 * _TELLING]


def redactor(names: Iterable[str], kept: Iterable[str]) -> Callable[[str], str]:
    """Takes names out of messages: as they are, without what says where they come from (`file:`), and as the last part of a
    path where nothing that is `kept` has the same one."""
    gone, stay = set(names) - {""}, set(kept)
    forms = gone | {_path(name) for name in gone}
    basenames = {_last(name) for name in gone} - {_last(name) for name in stay}
    forms |= {name for name in basenames if len(name) >= _SHORTEST_BASENAME}
    forms -= stay
    if not forms:
        return str
    longer = {name for name in stay for form in forms if form in name} | {_path(n) for n in stay for form in forms if form in n}
    longer -= forms
    words = sorted(forms | longer, key=lambda word: (-len(word), word))
    pattern = re.compile("|".join(_whole(word) for word in words))
    return lambda message: pattern.sub(lambda found: found[0] if found[0] in longer else REDACTED, message)


def _whole(word: str) -> str:
    """A word's pattern; what is only letters and digits at an end does not begin or end within another word."""
    before = r"(?<!\w)" if word[0].isalnum() else ""
    after = r"(?!\w)" if word[-1].isalnum() else ""
    return before + re.escape(word) + after


def _excuses(data: bytes, longer: Sequence[bytes]) -> tuple[tuple[int, bytes], ...]:
    return tuple((found.start(), each) for each in longer for found in re.finditer(re.escape(data), each))


def _path(name: str) -> str:
    return name.partition(":")[2] or name


def _last(name: str) -> str:
    return _path(name).rpartition("/")[2]
