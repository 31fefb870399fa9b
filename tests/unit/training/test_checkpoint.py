"""Checkpoints survive an interruption at any moment, and damage is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megacontext.errors import CorruptCheckpoint
from megacontext.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint


def save(folder: Path, step: int) -> Path:
    return save_checkpoint(folder, step, {"module": {"weight": torch.full((50,), float(step))}, "optimizers": []})


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    state = load_checkpoint(save(tmp_path, 3))
    assert state["step"] == 3 and torch.equal(state["module"]["weight"], torch.full((50,), 3.0))


def test_the_last_two_are_kept_in_order(tmp_path: Path) -> None:
    for step in (1, 20, 300):
        save(tmp_path, step)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000020.pt", "step-00000300.pt"]


def test_the_best_is_kept_beside_the_last_two(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, {"module": {}, "optimizers": []}, keep=(1,))
    assert [path.name[5:13] for path in checkpoints(tmp_path)] == ["00000001", "00000003", "00000004"]


def test_an_interrupted_write_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def torn(value: Any, file: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000001.pt"]
    assert load_checkpoint(checkpoints(tmp_path)[-1])["step"] == 1
    save(tmp_path, 2)  # what was left half-written is in nobody's way
    assert load_checkpoint(checkpoints(tmp_path)[-1])["step"] == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_damage_is_named_with_what_to_fall_back_to(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "garbage": b"no checkpoint at all"}[damage])
    with pytest.raises(CorruptCheckpoint, match=r"step-00000002\.pt cannot be read .*; delete it to resume from step-00000001"):
        load_checkpoint(path)


@pytest.mark.parametrize("foreign", [[1, 2], {"weight": torch.ones(2)}, {"step": 2, "module": {}}, torch.ones(2)])
def test_what_something_else_wrote_is_no_checkpoint(tmp_path: Path, foreign: Any) -> None:
    path = save(tmp_path, 2)
    torch.save(foreign, path)
    with pytest.raises(CorruptCheckpoint, match=r"0002\.pt is no checkpoint of a training run; delete it to start"):
        load_checkpoint(path)
