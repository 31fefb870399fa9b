"""Teacher caches: the base's own predictions behind the whole context, without filling, bound to that base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from slice_files import small_slices

from megacontext.errors import ConfigError, ModelMismatch
from megacontext.testing.tiny_models import tiny_base
from megacontext.training.losses import TopTeacher, kl_to_teacher
from megacontext.training.slices import Slices
from megacontext.training.teacher import full_context_logits, packed, teacher_cache


@pytest.fixture
def slices(tmp_path: Path) -> Slices:
    return small_slices(tmp_path)


def own_logits(slices: Slices, row: int) -> torch.Tensor:
    """By transformers itself, one slice at a time: logits [H, V] of the horizon."""
    real = np.arange(32) < slices.fill[row][:, None]
    ids = torch.from_numpy(np.concatenate([slices.ids[row][real], slices.horizon[row]]).astype(np.int64))
    with torch.no_grad():
        logits: torch.Tensor = tiny_base().model(input_ids=ids[None, :-1], use_cache=False).logits[0]
    return logits[-slices.horizon.shape[1] :]


def test_it_is_what_the_base_itself_predicts(slices: Slices, tmp_path: Path) -> None:
    cache = teacher_cache(slices, tiny_base(), tmp_path / "teacher", k=8, batch=3)
    assert len(cache) == len(slices) > 4
    assert (slices.fill < 32).any(axis=1).sum() > 1  # filling is there to be left out
    rows = np.array([4, 0, len(slices) - 1])
    found = cache.top(rows)
    assert found.log_probs.shape == (3, 10, 8) and found.log_probs.dtype == torch.float16
    for place, row in enumerate(rows):
        expected = own_logits(slices, int(row)).log_softmax(dim=-1).topk(8, dim=-1)
        assert torch.allclose(found.log_probs[place].float(), expected.values, atol=2e-2)
        assert (found.indices[place] == expected.indices).float().mean() > 0.95  # near ties may change places


def test_the_base_has_no_divergence_from_its_own_cache(slices: Slices, tmp_path: Path) -> None:
    base = tiny_base()
    cache = teacher_cache(slices, base, tmp_path / "teacher", k=200)
    rows = np.arange(4)
    logits = full_context_logits(base, slices, rows)
    near = kl_to_teacher(logits, cache.top(rows))
    far = kl_to_teacher(logits.flip(0), cache.top(rows))
    assert float(near.abs().max()) < 1e-3 < float(far.mean())


def test_packing_keeps_exactly_the_real_tokens(slices: Slices) -> None:
    ids, valid = packed(slices, np.arange(len(slices)))
    for row in range(len(slices)):
        real = slices.ids[row][np.arange(32) < slices.fill[row][:, None]].tolist()
        assert ids[row][valid[row]].tolist() == real + slices.horizon[row].tolist()
        assert valid[row, np.argmax(valid[row]) :].all()


def test_another_base_is_refused_and_the_same_one_computes_nothing_again(slices: Slices, tmp_path: Path) -> None:
    told: list[int] = []
    teacher_cache(slices, tiny_base(), tmp_path / "teacher", k=8)
    before = (tmp_path / "teacher" / "log_probs.bin").read_bytes()
    teacher_cache(slices, tiny_base(), tmp_path / "teacher", k=8, progress=told.append)
    assert told == [len(slices)]
    with pytest.raises(ModelMismatch, match="was made with another base"):
        teacher_cache(slices, tiny_base(seed=1), tmp_path / "teacher", k=8)
    assert (tmp_path / "teacher" / "log_probs.bin").read_bytes() == before


def test_an_interrupted_cache_goes_on(slices: Slices, tmp_path: Path) -> None:
    def stop(count: int) -> None:
        if count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teacher_cache(slices, tiny_base(), tmp_path / "cut", k=8, batch=2, progress=stop)
    told: list[int] = []
    teacher_cache(slices, tiny_base(), tmp_path / "cut", k=8, batch=2, progress=told.append)
    teacher_cache(slices, tiny_base(), tmp_path / "whole", k=8, batch=2)
    assert told[0] == 2
    assert (tmp_path / "cut" / "indices.bin").read_bytes() == (tmp_path / "whole" / "indices.bin").read_bytes()


def test_its_size_is_bounded_and_known_before_anything_is_computed(slices: Slices, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"would take .* 1 of its .* rows fit"):
        teacher_cache(slices, tiny_base(), tmp_path / "teacher", k=8, limit_bytes=10 * 8 * 4)
    assert not (tmp_path / "teacher").exists()


def test_a_context_longer_than_the_base_was_made_for_names_both_numbers(slices: Slices, tmp_path: Path) -> None:
    short = tiny_base(max_position_embeddings=136)
    with pytest.raises(ConfigError, match="take 137 positions, but the base was made for 136"):
        teacher_cache(slices, short, tmp_path / "teacher")
    assert len(teacher_cache(slices, tiny_base(max_position_embeddings=137), tmp_path / "teacher")) == len(slices)


def test_the_top_is_sorted_and_normalised_over_everything(slices: Slices, tmp_path: Path) -> None:
    found = teacher_cache(slices, tiny_base(), tmp_path / "teacher").top(np.arange(3))
    assert isinstance(found, TopTeacher) and found.log_probs.shape[-1] == 64
    values = found.log_probs.float()
    assert (values.diff(dim=-1) <= 0).all()
    mass = values.exp().sum(dim=-1)
    assert (mass < 1).all() and (mass > 64 / 258).all()
