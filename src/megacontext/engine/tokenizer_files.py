"""The tokenizer travels with the memory, so that its text can be read without any model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megacontext.errors import UnsupportedModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FILE = "tokenizer.json"


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """The files that ``save_pretrained`` writes, by name; UnsupportedModel without a fast tokenizer."""
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModel(
            "provenance needs character offsets, which only fast tokenizers give: convert this model's tokenizer "
            "to tokenizer.json first"
        )
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def light_tokenizer(folder: Path, names: Mapping[str, str]) -> Tokenizer:
    """The stored tokenizer, without loading a model; ``names`` are the files that the memory lists."""
    from tokenizers import Tokenizer

    if _FILE not in names:
        raise UnsupportedModel(f"this memory keeps no {_FILE}: it was made without a tokenizer")
    return Tokenizer.from_file(str(folder / _FILE))
