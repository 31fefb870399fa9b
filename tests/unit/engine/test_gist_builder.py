"""Levels are a function of tokens and stored gists: however blocks come in, the gists are the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext.core import Timeline
from megacontext.engine.gist_builder import Frontier, GistBuilder, NewGists, NoGists
from megacontext.models.gistnet import GistNet, GistNetConfig
from megacontext.testing.tiny_models import WIDTH, tiny_base

BASE = tiny_base()


def make_builder(vectors: int = 1) -> GistBuilder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = GistNet(GistNetConfig(width=WIDTH, output_rms=BASE.embedding_rms, heads=2, layers=1, vectors=vectors))
        for parameter in net.parameters():  # what starts at zero would hide mistakes
            torch.nn.init.normal_(parameter, std=0.2)
    return GistBuilder(BASE, net)


BUILDERS = {vectors: make_builder(vectors) for vectors in (1, 2)}


class Stored:
    """All gists in memory: what `Layer` is on disk."""

    def __init__(self) -> None:
        self.blocks = 0
        self.levels: dict[int, np.ndarray] = {}

    def gists(self, lod: int, start: int, stop: int) -> np.ndarray:
        rows = self.levels[lod]
        assert 0 <= start <= stop <= len(rows)
        return rows[start:stop]

    def add(self, blocks: int, gists: NewGists) -> None:
        self.blocks += blocks
        for lod, (start, rows) in gists.items():
            there = self.levels.get(lod, rows[:0])
            assert start == len(there)
            self.levels[lod] = np.concatenate([there, rows])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_blocks(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 258, (count, 32)).astype(np.uint32)
    fill = np.where(rng.random(count) < 0.2, rng.integers(1, 33, count), 32).astype(np.uint8)
    ids[np.arange(32) >= fill[:, None]] = 4_000_000_000  # filling may be anything
    return ids, fill


def assert_same(a: Stored, b: Stored) -> None:
    assert a.levels.keys() == b.levels.keys()
    for lod in a.levels:
        np.testing.assert_array_equal(a.levels[lod].view(np.uint16), b.levels[lod].view(np.uint16))


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 99), sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6), vectors=st.sampled_from([1, 2]))
def test_pieces_give_the_same_bits_as_one_go(seed: int, sizes: list[int], vectors: int) -> None:
    ids, fill = random_blocks(seed, sum(sizes))
    builder, whole, pieces, frontier = BUILDERS[vectors], Stored(), Stored(), Frontier(NoGists())
    whole.add(len(ids), builder.extend(NoGists(), ids, fill))
    at = 0
    for size in sizes:
        part = slice(at, at + size)
        gists = builder.extend(pieces, ids[part], fill[part])
        again = builder.extend(frontier, ids[part], fill[part], level_one=builder.encode_blocks(ids, fill)[part])
        assert gists.keys() == again.keys() and all(np.array_equal(gists[lod][1], again[lod][1]) for lod in gists)
        pieces.add(size, gists)
        frontier.add(size, gists)
        at += size
    assert_same(whole, pieces)
    assert {lod: len(rows) for lod, rows in whole.levels.items()} == {
        lod: len(ids) // 32 ** (lod - 1) for lod in range(1, 4) if len(ids) // 32 ** (lod - 1)
    }


def test_three_levels_and_single_blocks() -> None:
    ids, fill = random_blocks(1, 1024 + 33)
    builder, whole, pieces = BUILDERS[1], Stored(), Stored()
    whole.add(len(ids), builder.extend(whole, ids, fill))
    pieces.add(1000, builder.extend(pieces, ids[:1000], fill[:1000]))
    for at in range(1000, len(ids)):
        pieces.add(1, builder.extend(pieces, ids[at : at + 1], fill[at : at + 1]))
    assert sorted(whole.levels) == [1, 2, 3] and len(whole.levels[2]) == 33
    assert_same(whole, pieces)
    assert np.abs(whole.levels[3]).max() > 0


def test_levels_differ_and_filling_has_no_influence() -> None:
    ids, fill = random_blocks(2, 32)[0] % 258, np.full(32, 5, np.uint8)
    other = ids.copy()
    other[:, 5:] = 7
    builder = BUILDERS[1]
    a, b = builder.extend(NoGists(), ids, fill), builder.extend(NoGists(), other, fill)
    assert np.array_equal(a[1][1], b[1][1]) and np.array_equal(a[2][1], b[2][1])
    other[0, 4] = (ids[0, 4] + 1) % 258
    c = builder.extend(NoGists(), other, fill)
    assert not np.array_equal(a[1][1][0], c[1][1][0]) and not np.array_equal(a[2][1], c[2][1])
    assert np.array_equal(a[1][1][1:], c[1][1][1:])


def test_dead_children_are_masked() -> None:
    ids, fill = random_blocks(4, 64)
    builder, stored = BUILDERS[2], Stored()
    stored.add(40, builder.extend(stored, ids[:40], fill[:40]))
    dead = Timeline(blocks=40, dead=((33, 36),))
    masked = builder.extend(stored, ids[40:], fill[40:], timeline=dead)[2][1]
    plain = builder.extend(stored, ids[40:], fill[40:])[2][1]
    assert not np.array_equal(masked, plain)
    stored.levels[1][33:36] = 60_000  # whatever they hold
    assert np.array_equal(builder.extend(stored, ids[40:], fill[40:], timeline=dead)[2][1], masked)


def test_nothing_new_gives_nothing() -> None:
    builder = BUILDERS[1]
    assert builder.extend(NoGists(), np.zeros((0, 32), np.uint32)) == {}
    assert builder.encode_blocks(np.zeros((0, 32), np.uint32)).shape == (0, 1, WIDTH)
