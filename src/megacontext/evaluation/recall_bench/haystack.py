"""Histories with needles in them: real code of held-out packages, with told lines between its lines, as memories on disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext.engine.bundle import Bundle
from megacontext.engine.memory import Memory
from megacontext.errors import DatasetError
from megacontext.evaluation.recall_bench.tasks import Case

IntArray = npt.NDArray[np.int64]
NEWEST = 1280
"""Tokens at a history's end without a needle: more than any window reads raw."""


def texts_of(histories: Sequence[IntArray], closed_by: int | None, tokenizer: Any) -> list[str]:
    """The documents of ``histories`` (int64 ids, each document ended by ``closed_by``) as texts."""
    texts = []
    for ids in histories:
        ends = np.flatnonzero(ids == closed_by) if closed_by is not None else np.zeros(0, np.int64)
        texts += [
            tokenizer.decode(part.tolist(), skip_special_tokens=True) for part in np.split(ids, ends + 1) if len(part) > 1
        ]
    return [text for text in texts if "\n" in text]


def documents(texts: Sequence[str], tokens: int, tokenizer: Any, rng: np.random.Generator) -> list[str]:
    """Texts in random order that hold about ``tokens`` tokens, the last one cut; DatasetError where there are too few."""
    chosen: list[str] = []
    left = tokens
    for at in rng.permutation(len(texts)):
        ids = tokenizer(texts[at], add_special_tokens=False, verbose=False)["input_ids"]
        chosen.append(texts[at] if len(ids) <= left else tokenizer.decode(ids[:left]))
        left -= len(ids)
        if left <= 0:
            return chosen
    raise DatasetError(f"the held-out documents are {left:,} tokens short of {tokens:,}: add documents or shorten --lengths")


def planted(texts: Sequence[str], cases: Sequence[Case], rng: np.random.Generator, *, newest: int) -> list[str]:
    """``texts`` with every told line of ``cases`` at a random line break, none in the last ``newest`` characters of all.

    The lines of one case keep their order.
    """
    room = sum(map(len, texts)) - newest
    if room <= 0:
        raise DatasetError(f"the history has no room for needles before its last {newest:,} characters: take a longer one")
    starts = np.cumsum([0, *map(len, texts)])
    inserts: dict[int, list[tuple[int, int, str]]] = {}
    for case in cases:
        for number, (place, line) in enumerate(
            zip(np.sort(rng.integers(0, room, len(case.told))).tolist(), case.told, strict=True)
        ):
            at = int(np.searchsorted(starts, place, side="right")) - 1
            cut = texts[at].rfind("\n", 0, place - int(starts[at]) + 1)
            inserts.setdefault(at, []).append((max(cut, 0), number, line))
    result = []
    for at, text in enumerate(texts):
        parts, before = [], 0
        for cut, _, line in sorted(inserts.get(at, [])):
            parts += [text[before:cut], line.rstrip("\n")]
            before = cut
        result.append("".join([*parts, text[before:]]))
    return result


@contextmanager
def memory_of(texts: Sequence[str], bundle: Bundle) -> Iterator[Memory]:
    """A memory on disk that holds ``texts``, one document each, in one commit; removed at the end."""
    folder = Path(mkdtemp(prefix="megacontext-recall-"))
    try:
        source = folder / "history"
        source.mkdir()
        for number, text in enumerate(texts):
            (source / f"{number:05d}.py").write_text(text, encoding="utf-8")
        memory = Memory.create(folder / "memory.mc", bundle=bundle, model=bundle.name)
        memory.add(source)
        yield memory
    finally:
        shutil.rmtree(folder, ignore_errors=True)
