from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megacontext.models.canonical import ROWS, WIDE, WORTH_TRYING, CanonicalBatches, random_mask
from megacontext.models.gistnet import GistNet, GistNetConfig
from megacontext.testing.tiny_bundle import tiny_kv_gistnet
from megacontext.testing.tiny_models import VOCAB, tiny_base

COUNT = WORTH_TRYING + 5


def sample(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(WIDE, 3, generator=generator), random_mask(WIDE, 3, generator)


def told_apart(rows: Tensor, mask: Tensor) -> Tensor:
    """What a machine would compute whose results depend on the batch's shape."""
    return rows + len(rows)


def as_good(rows: Tensor, mask: Tensor) -> Tensor:
    return rows * 2


@pytest.mark.parametrize(
    ("compute", "count", "size"), [(as_good, COUNT, WIDE), (told_apart, COUNT, ROWS), (as_good, 100, ROWS)]
)
def test_wide_batches_only_where_they_give_the_same_bits_and_pay(
    compute: Callable[[Tensor, Tensor], Tensor], count: int, size: int
) -> None:
    found = list(CanonicalBatches().slices(count, compute, sample))
    assert found[0][1] == size and found[-1][1] == ROWS
    assert [row for rows, _ in found for row in range(rows.start, rows.stop)] == list(range(count))
    assert all(rows.stop - rows.start <= size for rows, size in found)


def test_trying_is_done_once_for_a_shape() -> None:
    batches, calls = CanonicalBatches(), []

    def counted(rows: Tensor, mask: Tensor) -> Tensor:
        calls.append(len(rows))
        return rows

    for _ in range(3):
        list(batches.slices(COUNT, counted, sample, "shape"))
    assert calls.count(WIDE) == 1
    list(batches.slices(COUNT, counted, sample, "another"))
    assert calls.count(WIDE) == 2


def test_gists_are_the_same_bits_in_bulk_and_one_by_one() -> None:
    torch.manual_seed(0)
    net = GistNet(GistNetConfig(width=96, output_rms=0.02, hidden=64))
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    children = torch.randn(COUNT, 32, 96) * 0.02
    mask = random_mask(COUNT, 32, torch.Generator().manual_seed(1))
    at_once = net.encode_canonical(children, mask, 1)
    apart = torch.cat([net.encode_canonical(children[at : at + 3], mask[at : at + 3], 1) for at in range(0, COUNT, 3)])
    assert torch.equal(at_once, apart) and at_once.abs().sum() > 0


def test_key_value_gists_are_the_same_bits_in_bulk_and_one_by_one() -> None:
    base = tiny_base("llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = tiny_kv_gistnet(base)
    ids = torch.randint(0, VOCAB - 2, (COUNT, 32), generator=torch.Generator().manual_seed(2))
    mask = random_mask(COUNT, 32, torch.Generator().manual_seed(3))
    at_once = net.encode_blocks(base, ids, mask)
    apart = torch.cat([net.encode_blocks(base, ids[at : at + 7], mask[at : at + 7]) for at in range(0, COUNT, 7)])
    assert torch.equal(at_once, apart) and at_once.abs().sum() > 0
