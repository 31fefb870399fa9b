"""Rules that choose blocks: each finds the block that was planted for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from megacontext.core import Timeline, WorkingContext
from megacontext.engine.policies import FocusView
from megacontext.evaluation.arms import Item, reader_over
from megacontext.evaluation.choices import Cosine, best, bm25, dense, longest_suffix
from megacontext.models import BaseLM
from megacontext.models.bi_encoder import BiEncoder, BiEncoderConfig
from megacontext.testing.tiny_models import tiny_base

FAR, TAIL = 256, 32


@pytest.fixture(scope="module")
def base() -> BaseLM:
    return tiny_base("llama")


def planted(block: int) -> Item:
    """An item whose newest tokens occur in one far block only."""
    rng = np.random.default_rng(block)
    ids = rng.integers(0, 100, FAR + TAIL + 8)
    ids[FAR:] = rng.integers(150, 250, TAIL + 8)
    ids[block * 32 + 4 : block * 32 + 16] = ids[FAR + TAIL - 12 : FAR + TAIL]
    return Item(ids=ids, far=FAR, tail=TAIL, reader=reader_over(ids, {}))


@pytest.mark.parametrize("rule", [longest_suffix, bm25])
@pytest.mark.parametrize("block", [0, 3, 7])
def test_the_planted_block_is_found(rule: Callable[..., np.ndarray], block: int) -> None:
    assert best(rule)(planted(block), 0, 1).tolist() == [block]
    assert block in best(rule)(planted(block), 0, 3).tolist()


def test_ties_go_to_the_newest_block() -> None:
    item = planted(2)
    assert best(lambda blocks, query: np.zeros(len(blocks)))(item, 0, 2).tolist() == [6, 7]


def test_a_choice_sees_nothing_of_what_follows(base: BaseLM) -> None:
    torch.manual_seed(0)
    encoder = BiEncoder(BiEncoderConfig(width=base.width, hidden=8))
    one = planted(3)
    other = Item(ids=np.concatenate([one.ids[: FAR + TAIL], one.ids[:8]]), far=FAR, tail=TAIL, reader=one.reader)
    for rule in (longest_suffix, bm25, dense(encoder, base)):
        assert best(rule)(one, 0, 3).tolist() == best(rule)(other, 0, 3).tolist()


def test_cosine_prefers_the_block_with_the_same_tokens(base: BaseLM) -> None:
    item = planted(5)
    window = WorkingContext(
        timeline=Timeline(blocks=9), lod=np.array([1] * 8 + [0], np.int8), index=np.arange(9), budget=300, recent=32
    )
    query = item.ids[FAR + TAIL - 12 : FAR + TAIL]
    scores = Cosine(base).score(FocusView(window=window, reader=item.reader, query=query)).entries
    assert int(scores[:8].argmax()) == 5 and scores[5] > 0
