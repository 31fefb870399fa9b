"""Prepared datasets: documents on block boundaries, lossless, and the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from corpus_files import config, small_corpus
from hypothesis import given
from hypothesis import strategies as st

from megacontext.errors import DatasetError
from megacontext.testing.tiny_models import EOS, byte_tokenizer
from megacontext.training.dataset import load_split, read_manifest, to_blocks
from megacontext.training.prepare import make_tokenizer, prepare


@given(st.lists(st.integers(0, 255), max_size=150))
def test_blocks_hold_exactly_the_document(tokens: list[int]) -> None:
    ids, fill = to_blocks(tokens, EOS)
    assert ids.shape == (len(tokens) // 32 + 1, 32)
    assert (fill[:-1] == 32).all() and 1 <= fill[-1] <= 32
    assert ids[np.arange(32) < fill[:, None]].tolist() == [*tokens, EOS]
    assert (ids[np.arange(32) >= fill[:, None]] == EOS).all()


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    root = small_corpus(tmp_path)
    for name in ("one", "two"):
        prepare(config(root), byte_tokenizer(), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["manifest.json", "test.safetensors", "train.safetensors", "validation.safetensors"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_documents_come_back_and_start_on_block_boundaries(tmp_path: Path) -> None:
    root = small_corpus(tmp_path)
    manifest = prepare(config(root), byte_tokenizer(), tmp_path / "data")
    train = load_split(tmp_path / "data", "train")
    texts = [path.read_text() for package in manifest["splits"]["train"]["packages"] for path in _files(root, package)]
    for ordinal, text in enumerate(texts):
        mine = np.flatnonzero(train.document == ordinal)
        assert (np.diff(mine) == 1).all()
        start = int(mine[0])
        tokens = train.tokens(start, len(text.encode()) + 1)
        assert byte_tokenizer().decode(tokens[:-1].tolist()) == text
        assert tokens[-1] == EOS
    assert manifest["splits"]["train"]["documents"] == len(texts) == 8


def _files(root: Path, package: str) -> list[Path]:
    return sorted((root / package.partition("/")[2]).iterdir())


def test_counts_in_the_manifest_are_those_of_the_files(tmp_path: Path) -> None:
    prepare(config(small_corpus(tmp_path)), byte_tokenizer(), tmp_path / "data")
    manifest = read_manifest(tmp_path / "data")
    for split, part in manifest["splits"].items():
        blocks = load_split(tmp_path / "data", split)
        assert (part["blocks"], part["tokens"]) == (len(blocks), int(blocks.fill.sum()))


def test_a_smaller_sample_keeps_whole_files(tmp_path: Path) -> None:
    root = small_corpus(tmp_path)
    full = prepare(config(root), byte_tokenizer(), tmp_path / "full")["splits"]
    part = prepare(config(root), byte_tokenizer(), tmp_path / "part", max_train_bytes=10_000)["splits"]
    assert 0 < part["train"]["documents"] < full["train"]["documents"]
    assert part["test"] == full["test"]


def test_the_tokenizer_sees_the_training_split_only_and_loses_nothing(tmp_path: Path) -> None:
    root = small_corpus(tmp_path)
    tokenizer = make_tokenizer(config(root), vocab_size=300, max_bytes=10**6, output=tmp_path / "tokenizer")
    text = "def f(x):\n\n        return {'ä': 12345, \"\\t\": None}\t\r\n  # 漢字 🙂\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()


def test_missing_datasets_say_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="prepare_dataset"):
        load_split(tmp_path, "train")
    prepare(config(small_corpus(tmp_path)), byte_tokenizer(), tmp_path / "data")
    (tmp_path / "data" / "train.safetensors").unlink()
    with pytest.raises(DatasetError, match="missing: prepare the dataset again"):
        load_split(tmp_path / "data", "train")
    with pytest.raises(DatasetError, match="no split named dev"):
        load_split(tmp_path / "data", "dev")  # type: ignore[arg-type]
