"""Slices: aligned contexts with the tokens that really follow, inside one package, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from corpus_files import config, small_corpus
from hypothesis import given
from hypothesis import strategies as st

from megacontext.errors import ConfigError, DatasetError
from megacontext.testing.tiny_models import byte_tokenizer
from megacontext.training.dataset import Blocks, load_split
from megacontext.training.prepare import prepare
from megacontext.training.slices import SliceConfig, load_slices, slice_starts, write_slices

SMALL = SliceConfig(context_length=256, stride=96, horizon=40)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    prepare(config(small_corpus(tmp_path, files=3, lines=12)), byte_tokenizer(), tmp_path / "data")
    return tmp_path / "data"


def test_a_slice_is_a_stretch_of_its_split_and_what_follows(dataset: Path, tmp_path: Path) -> None:
    manifest = write_slices(dataset, tmp_path / "slices", SMALL)
    for split, part in manifest["splits"].items():
        blocks, slices = load_split(dataset, split), load_slices(tmp_path / "slices", split)
        assert part["slices"] == len(slices) > 0
        assert slices.ids.shape == (len(slices), 8, 32) and slices.horizon.shape == (len(slices), 40)
        for row, start in enumerate(slices.start.tolist()):
            inside = slice(start, start + 8)
            assert (slices.ids[row] == blocks.ids[inside]).all() and (slices.fill[row] == blocks.fill[inside]).all()
            assert (slices.document[row] == blocks.document[inside]).all()
            assert (slices.horizon[row] == blocks.tokens(start + 8, 40)).all()
            last = start + 8 + -(-40 // 32)
            assert len(set(blocks.package[start:last].tolist())) == 1


def test_every_stride_with_room_for_the_horizon_has_a_slice(dataset: Path, tmp_path: Path) -> None:
    write_slices(dataset, tmp_path / "slices", SMALL)
    blocks, slices = load_split(dataset, "train"), load_slices(tmp_path / "slices", "train")
    wanted = []
    for package in np.unique(blocks.package):
        mine = np.flatnonzero(blocks.package == package)
        for start in range(mine[0], mine[-1] + 1, 3):
            if blocks.fill[start + 8 : mine[-1] + 1].sum() >= 40:
                wanted.append(start)
    assert slices.start.tolist() == wanted


def test_slices_are_mapped_and_the_same_every_time(dataset: Path, tmp_path: Path) -> None:
    one, two = (write_slices(dataset, tmp_path / name, SMALL) for name in ("one", "two"))
    assert one == two
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    slices = load_slices(tmp_path / "one", "test")
    assert isinstance(slices.ids, np.memmap) and not slices.ids.flags.writeable


def test_too_short_packages_say_so(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds 65600 tokens"):
        write_slices(dataset, tmp_path / "slices", SliceConfig(context_length=65536))
    with pytest.raises(DatasetError, match="--slices"):
        load_slices(tmp_path / "slices", "train")


@pytest.mark.parametrize("wrong", [{"context_length": 100}, {"stride": 0}, {"horizon": 0}])
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SliceConfig(**wrong)


def test_a_context_longer_than_the_base_was_made_for_is_refused_with_both_numbers() -> None:
    config = SliceConfig(context_length=4096, horizon=64)
    config.require_range(4159)
    with pytest.raises(ConfigError, match=r"take 4159 positions, but the base was made for 4158: .* of 4064"):
        config.require_range(4158)


@st.composite
def splits(draw: st.DrawFn) -> Blocks:
    """Packages of documents of random length; every token has a number of its own."""
    fill: list[int] = []
    document: list[int] = []
    package: list[int] = []
    for number, lengths in enumerate(
        draw(st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=6), min_size=1, max_size=4))
    ):
        for length in lengths:
            blocks = -(-length // 32)
            fill += [32] * (blocks - 1) + [length - 32 * (blocks - 1)]
            document += [document[-1] + 1 if document else 0] * blocks
            package += [number] * blocks
    return Blocks(
        ids=np.arange(32 * len(fill), dtype=np.uint16).reshape(-1, 32),
        fill=np.array(fill, dtype=np.uint8),
        document=np.array(document, dtype=np.uint32),
        package=np.array(package, dtype=np.uint32),
    )


@given(splits(), st.integers(1, 5), st.integers(1, 4), st.integers(1, 90))
def test_no_slice_leaves_its_package_and_every_horizon_is_what_follows(
    blocks: Blocks, length: int, step: int, horizon: int
) -> None:
    config = SliceConfig(context_length=32 * length, stride=32 * step, horizon=horizon)
    starts = slice_starts(blocks, config)
    valid = np.arange(32) < blocks.fill[:, None]
    wanted = []
    for first in range(len(blocks)):
        mine = np.flatnonzero(blocks.package == blocks.package[first])
        following = np.arange(len(blocks)) >= first + length
        rest = blocks.ids[valid & (following & (blocks.package == blocks.package[first]))[:, None]]
        inside = first + length - 1 <= mine[-1]
        if inside and (first - mine[0]) % step == 0 and len(rest) >= horizon:
            wanted.append(first)
            assert blocks.tokens(first + length, horizon).tolist() == rest[:horizon].tolist()
    assert starts.tolist() == wanted
