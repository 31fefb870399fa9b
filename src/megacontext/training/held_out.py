"""Histories that no training ever saw: the held-out packages of this interpreter's standard library."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext.training.corpus import CorpusConfig, collect, split_of


def held_out_histories(tokenizer: Any, *, config: CorpusConfig | None = None) -> list[npt.NDArray[np.int64]]:
    """The test packages of the standard library, each joined to one history of token ids int64 [tokens].

    The split is by name (``corpus.STDLIB_TEST``), so it holds on every machine, whatever its Python's
    patch version. Every document is closed by the end-of-text token.
    """
    stdlib = sysconfig.get_paths()["stdlib"]
    chosen = config or CorpusConfig(roots=(stdlib,))
    by_package: dict[str, list[str]] = {}
    for file in collect(chosen):
        if split_of(file.package, chosen.held_out_percent) == "test":
            by_package.setdefault(file.package, []).append(file.text)
    return [joined(texts, tokenizer) for _, texts in sorted(by_package.items())]


def joined(texts: Sequence[str], tokenizer: Any) -> npt.NDArray[np.int64]:
    """Documents in order, each closed by the end-of-text token: int64 [tokens]."""
    parts: list[int] = []
    for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]:
        parts += [*ids, tokenizer.eos_token_id]
    return np.asarray(parts, dtype=np.int64)


def standard_library_part(count: Callable[[str], int], *, tokens: int | None) -> list[Path]:
    """Top-level modules and packages of the standard library that hold at least ``tokens`` tokens together.

    Taken in a fixed order, the well-known ones first; None means all. ``count`` gives the tokens of a text.
    """
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    names = [path.name for path in sorted(stdlib.iterdir()) if path.suffix == ".py" or (path / "__init__.py").is_file()]
    skipped = {"site-packages", "test", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
    ordered = [name for name in FIRST if name in names] + [name for name in names if name not in FIRST]
    chosen: list[Path] = []
    total = 0
    for name in ordered:
        if name in skipped or name.startswith("_"):
            continue
        path = stdlib / name
        chosen.append(path)
        if tokens is None:
            continue
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        total += sum(count(file.read_text(encoding="utf-8", errors="replace")) for file in files)
        if total >= tokens:
            break
    return chosen


FIRST = ("asyncio", "email", "json", "http", "logging", "urllib", "argparse.py", "pathlib.py", "dataclasses.py", "typing.py")
"""What the demo reads first: modules that everybody knows."""
