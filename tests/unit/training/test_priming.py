"""A primed GistNet can be read by its base before either has learned anything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F

from megacontext.engine.substitution import encode_nodes
from megacontext.models import BaseLM, GistNet, GistNetConfig
from megacontext.testing.tiny_models import tiny_base
from megacontext.training.config import BaseShape
from megacontext.training.induction import build_base
from megacontext.training.priming import fit_rarity, fit_shift, head_subspaces, prime

VOCAB = 512
STRIDE = 6
SHAPE = BaseShape(width=220, layers=2, context_length=512)
SURPRISAL = torch.linspace(2.0, 12.0, VOCAB)
SURPRISAL = SURPRISAL + torch.logsumexp(-SURPRISAL, dim=0)


@pytest.fixture(scope="module")
def base() -> BaseLM:
    return BaseLM.wrap(build_base(SHAPE, vocab_size=VOCAB, eos=0, surprisal=SURPRISAL))


def text(rows: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def primed(base: BaseLM) -> Iterator[GistNet]:
    torch.manual_seed(0)
    gistnet = GistNet(
        GistNetConfig(width=base.width, output_rms=base.embedding_rms, heads=6, hidden=96, pools=6, readout="associative_pool")
    )
    prime(gistnet, base, text(8, 256, 1), SURPRISAL)
    yield gistnet.eval()


@torch.no_grad()
def recall(base: BaseLM, gists: torch.Tensor, cues: torch.Tensor, answers: torch.Tensor) -> float:
    """Mean logit of the answers behind gists [n, M, d] and a cue [n], against the mean of all tokens."""
    slots = torch.cat([gists, base.embed(cues[:, None])], dim=1)
    positions = torch.arange(slots.shape[1]) * STRIDE
    logits = F.log_softmax(base.forward(slots, positions.expand(len(slots), -1)).logits[:, -1], dim=-1)
    return float((logits.gather(1, answers[:, None])[:, 0] - logits.mean(dim=1)).mean())


def test_a_token_that_stood_behind_the_cue_is_recalled_from_the_gist(base: BaseLM, primed: GistNet) -> None:
    ids = text(64, 6 * 32, 2)
    # The rarest token of a pool's own part is the one it picks: plant it, and ask with the token before it.
    ids[:, 2 * 32 + 12] = VOCAB - 1 - torch.arange(64) % 16
    cues, answers = ids[:, 2 * 32 + 11], ids[:, 2 * 32 + 12]
    with torch.no_grad():
        gists = encode_nodes(primed, base.embed(ids).view(64, 6, 32, -1), 1)[:, :, 0]
    true, swapped = recall(base, gists, cues, answers), recall(base, gists.roll(17, 0), cues, answers)
    assert true > swapped + 0.3


def test_the_shift_is_what_layer_0_does(base: BaseLM) -> None:
    before, before_that = fit_shift(base, text(8, 256, 1))
    ids = text(2, 64, 5)
    with torch.no_grad():
        hidden = base.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[1]
        x = base.embed(ids)
    ours = x[:, 2:] + x[:, 1:-1] @ before.T + x[:, :-2] @ before_that.T
    error = (ours - hidden[:, 2:]).square().mean() / hidden.square().mean()
    assert error < 0.02


def test_rarity_is_read_off_the_embeddings(base: BaseLM) -> None:
    told = base.embed(torch.arange(VOCAB)[None])[0] @ fit_rarity(base, SURPRISAL)
    assert torch.corrcoef(torch.stack([told.detach(), SURPRISAL]))[0, 1] > 0.95


def test_pools_write_to_subspaces_that_do_not_touch(base: BaseLM) -> None:
    found = head_subspaces(base, SHAPE.pairs)
    for index, one in enumerate(found):
        torch.testing.assert_close(one @ one, one, atol=1e-4, rtol=1e-4)
        for other in found[:index]:
            assert (one @ other).abs().max() < 1e-4


def test_any_base_with_projections_can_be_primed() -> None:
    other = tiny_base("llama")
    config = GistNetConfig(width=other.width, output_rms=other.embedding_rms, heads=2, readout="associative_pool")
    gistnet = GistNet(config)
    surprisal = torch.full((other.vocab_size,), 3.0)
    surprisal[::2] = 9.0
    prime(gistnet, other, torch.randint(1, other.vocab_size, (2, 64)), surprisal)
    gists = encode_nodes(gistnet, other.embed(torch.randint(1, other.vocab_size, (2, 64))).view(2, 2, 32, -1), 1)
    assert torch.isfinite(gists).all()
