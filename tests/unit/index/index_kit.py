"""Small memories to search, of words that tests know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megacontext.storage.repository import Repository

# Words, with what is hard about texts: cases, quotes, operators, spaces of every kind, letters beyond ASCII.
WORDS = [
    *(
        "retry",
        "_policy",
        " self",
        ".",
        "(",
        ")",
        "Return ",
        '"',
        "'",
        " AND ",
        " OR ",
        "NOT ",
        "*",
        "-",
        ":",
        "^",
        "\n",
        "\n    ",
    ),
    *(
        "\t",
        " value",
        "Value",
        "Straße",
        "STRASSE",
        "σς",
        "重试",
        "试",
        "é",
        "ı",
        "İ",
        "\x00",
        "\ufffd",
        "ab",
        "b",
        "ba",
        " x",
        "def ",
    ),
    *(f"name{number}" for number in range(24)),
]


def decode(rows: Sequence[Sequence[int]]) -> list[str]:
    """The texts of sequences of word numbers."""
    return ["".join(WORDS[number] for number in row) for row in rows]


def add_words(
    repository: Repository,
    ids: np.ndarray,
    *,
    source: str = "",
    branch: str | None = None,
    commit: bool = True,
    at: float = 0.0,
    tags: tuple[str, ...] = (),
) -> None:
    """Writes one document of the given tokens; its last block is filled up with zeros."""
    blocks = np.zeros((-(-len(ids) // 32), 32), np.uint32)
    blocks.ravel()[: len(ids)] = ids
    fill = np.full(len(blocks), 32, np.uint8)
    fill[-1] = len(ids) - 32 * (len(blocks) - 1)
    with repository.writer(branch) as writer:
        writer.begin_document(source=source or f"text:{writer.blocks}", ingested_at=at, tags=tags)
        writer.append_blocks(blocks, fill)
        writer.end_document()
        if commit:
            writer.commit("", time=0.0)


def memory_of_words(root: Path, seed: int = 0, documents: int = 7) -> Repository:
    """Segments of 32 blocks, several of them, and a tail."""
    rng = np.random.default_rng(seed)
    repository = Repository.create(root / "memory", created=0.0, segment_blocks=32)
    for number in range(documents):
        ids = rng.integers(0, len(WORDS), int(rng.integers(1, 900))).astype(np.uint32)
        add_words(repository, ids, commit=number < documents - 1)
    return repository
