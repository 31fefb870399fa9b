"""A small corpus on disk whose packages fall into known splits."""

from __future__ import annotations

import random
from pathlib import Path

from megacontext.training.corpus import SPLITS, CorpusConfig, Split, split_of

PERCENT = 30


def name_in(split: Split, number: int = 0) -> str:
    """The ``number``-th package name of a fixed sequence that belongs to ``split``."""
    names = (f"package{i}" for i in range(1000))
    return [name for name in names if split_of(f"lib/{name}", PERCENT) == split][number]


def source(seed: int, lines: int = 60) -> str:
    """Code-like text of which no three lines in a row occur in that of another seed."""
    rng = random.Random(seed)
    return "".join(f"    value_{rng.randrange(10**6)} = call({rng.randrange(10**6)}, {seed})\n" for _ in range(lines))


def config(root: Path) -> CorpusConfig:
    """Everything below ``root``."""
    return CorpusConfig(roots=(str(root),), held_out_percent=PERCENT)


def write(root: Path, package: str, name: str, text: str) -> None:
    """One file of a package."""
    (root / package).mkdir(parents=True, exist_ok=True)
    (root / package / name).write_text(text)


def small_corpus(folder: Path, *, files: int = 4, lines: int = 60) -> Path:
    """Two packages for training, one for each of the other splits, ``files`` files each."""
    root = folder / "lib"
    packages = [name_in("train", 0), name_in("train", 1), *(name_in(split) for split in SPLITS if split != "train")]
    for place, package in enumerate(packages):
        for number in range(files):
            write(root, package, f"module{number}.py", source(100 * place + number, lines))
    return root
