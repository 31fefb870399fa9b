"""Slices of a small corpus, for tests of what is computed from them."""

from __future__ import annotations

from pathlib import Path

from corpus_files import config, small_corpus

from megacontext.testing.tiny_models import byte_tokenizer
from megacontext.training.prepare import prepare
from megacontext.training.slices import SliceConfig, Slices, load_slices, write_slices


def small_slices(folder: Path, *, context_length: int = 128, stride: int = 64, horizon: int = 10) -> Slices:
    """A few slices in bytes, some with filling inside: documents end every few blocks."""
    prepare(config(small_corpus(folder, files=5, lines=11)), byte_tokenizer(), folder / "data")
    write_slices(folder / "data", folder / "data", SliceConfig(context_length=context_length, stride=stride, horizon=horizon))
    return load_slices(folder / "data", "validation")
