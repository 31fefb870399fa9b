"""Prepared datasets: documents on block boundaries, lossless, and the same bytes every time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from corpus_files import config, name_in, small_corpus, source
from hypothesis import given
from hypothesis import strategies as st

from megacontext.errors import ConfigError, DatasetError
from megacontext.testing.tiny_models import EOS, byte_tokenizer
from megacontext.training.corpus import SPLITS
from megacontext.training.dataset import Blocks, load_split, read_documents, read_manifest, to_blocks
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
    assert files == ["documents.jsonl", "manifest.json", "test.safetensors", "train.safetensors", "validation.safetensors"]
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


def test_every_document_is_named_with_its_place_and_hash(tmp_path: Path) -> None:
    root = small_corpus(tmp_path)
    prepare(config(root), byte_tokenizer(), tmp_path / "data")
    for split in SPLITS:
        blocks, documents = load_split(tmp_path / "data", split), read_documents(tmp_path / "data", split)
        assert [each["document"] for each in documents] == list(range(len(documents)))
        assert sum(each["tokens"] for each in documents) == blocks.fill.sum()
        for each in documents:
            mine = np.flatnonzero(blocks.document == each["document"])
            assert (mine[0], len(mine)) == (each["block"], each["blocks"])
            data = (root.parent / each["name"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == each["sha256"]
            assert byte_tokenizer().decode(blocks.tokens(mine[0], each["tokens"] - 1).tolist()) == data.decode()


def test_a_history_is_all_documents_of_a_package_in_order(tmp_path: Path) -> None:
    root = small_corpus(tmp_path)
    prepare(config(root), byte_tokenizer(), tmp_path / "data")
    for split in SPLITS:
        histories = load_split(tmp_path / "data", split).histories()
        packages: dict[str, str] = {}
        for each in read_documents(tmp_path / "data", split):
            text = (root.parent / each["name"]).read_text() + "<eos>"
            packages[each["package"]] = packages.get(each["package"], "") + text
        assert [byte_tokenizer().decode(tokens.tolist()) for tokens in histories] == list(packages.values())
        assert all(history.count("<eos>") == 4 for history in packages.values())


@given(st.lists(st.integers(1, 32), min_size=1, max_size=60), st.integers(0, 59), st.integers(0, 400))
def test_tokens_are_the_next_valid_ones_however_little_the_blocks_hold(fill: list[int], start: int, count: int) -> None:
    ids = np.arange(len(fill) * 32, dtype=np.uint16).reshape(-1, 32)
    one = np.zeros(len(fill), dtype=np.uint32)
    blocks = Blocks(ids=ids, fill=np.array(fill, dtype=np.uint8), document=one, package=one)
    valid = [32 * block + token for block in range(start, len(fill)) for token in range(fill[block])]
    assert blocks.tokens(start, count).tolist() == valid[:count]


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


def test_splits_are_mapped_and_preparing_again_leaves_open_maps_alone(tmp_path: Path) -> None:
    root = small_corpus(tmp_path)
    prepare(config(root), byte_tokenizer(), tmp_path / "data")
    train = load_split(tmp_path / "data", "train")
    assert isinstance(train.ids, np.memmap) and not train.ids.flags.writeable
    before = train.ids.copy()
    (root / name_in("train") / "module0.py").write_text(source(999, 20))
    prepare(config(root), byte_tokenizer(), tmp_path / "data")
    assert (train.ids == before).all() and len(load_split(tmp_path / "data", "train")) < len(before)


def test_an_interrupted_preparation_is_no_dataset(tmp_path: Path) -> None:
    root = small_corpus(tmp_path)
    prepare(config(root), byte_tokenizer(), tmp_path / "data")

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config(root), byte_tokenizer(), tmp_path / "data", progress=stop)
    with pytest.raises(DatasetError, match="no prepared dataset"):
        load_split(tmp_path / "data", "train")


@pytest.mark.parametrize(("name", "keep"), [("train.safetensors", 0), ("train.safetensors", 200), ("manifest.json", 50)])
def test_a_damaged_dataset_is_named(tmp_path: Path, name: str, keep: int) -> None:
    prepare(config(small_corpus(tmp_path)), byte_tokenizer(), tmp_path / "data")
    path = tmp_path / "data" / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DatasetError, match=f"{name} is (cut or )?damaged: prepare the dataset again"):
        load_split(tmp_path / "data", "train")


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="set its eos_token"):
        prepare(config(small_corpus(tmp_path)), tokenizer, tmp_path / "data")
