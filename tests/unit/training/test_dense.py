"""The dense retriever: what it is taught, and that it learns it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megacontext.errors import ModelMismatch
from megacontext.models.bi_encoder import BiEncoder, BiEncoderConfig
from megacontext.training.dense import held_pairs


def test_pairs_count_once_with_their_rarer_half_hidden() -> None:
    rarity = np.array([1.0, 2.0, 4.0, 8.0], np.float32)
    blocks = np.zeros((3, 32), np.int64)
    blocks[1, 4:6] = [2, 3]
    blocks[2, 4:8] = [2, 3, 2, 3]
    held = held_pairs(blocks, np.array([2, 3, 1]), rarity)
    assert held.tolist() == [0.0, 4.0, 4.0]


def test_it_learns_which_block_holds_what_the_query_names() -> None:
    """Blocks that hold the query's tokens are to be preferred: a flipped sign would end below chance."""
    torch.manual_seed(0)
    table = torch.randn(64, 16)
    net = BiEncoder(BiEncoderConfig(width=16, hidden=16, query=8))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    rng = np.random.default_rng(0)

    def draw() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids = rng.integers(0, 64, (32, 6, 32))
        answer = rng.integers(0, 6, 32)
        query = ids[np.arange(32), answer, 4:12]
        return table[torch.from_numpy(ids)], table[torch.from_numpy(query)], torch.from_numpy(answer)

    for _ in range(60):
        blocks, query, answer = draw()
        loss = torch.nn.functional.cross_entropy(net(blocks, query), answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    blocks, query, answer = draw()
    assert float((net(blocks, query).argmax(dim=1) == answer).float().mean()) > 0.5


def test_it_is_saved_for_one_base(tmp_path: Path) -> None:
    net = BiEncoder(BiEncoderConfig(width=16, hidden=8, base_fingerprint="abc")).eval()
    again = BiEncoder.from_pretrained(net.save_pretrained(tmp_path), base_fingerprint="abc")
    blocks, query = torch.randn(2, 3, 32, 16), torch.randn(2, 40, 16)
    torch.testing.assert_close(again(blocks, query), net(blocks, query))
    with pytest.raises(ModelMismatch):
        BiEncoder.from_pretrained(tmp_path, base_fingerprint="other")
