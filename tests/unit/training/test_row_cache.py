"""Caches on disk: computed once, resumed after any interruption, bounded, and bound to what they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megacontext.errors import ConfigError, DatasetError, ModelMismatch, StorageFull
from megacontext.training import row_cache
from megacontext.training.row_cache import LIMIT, Arrays, Field, cached_rows

FIELDS = {"square": Field(dtype=np.int64, shape=()), "grid": Field(dtype=np.float16, shape=(2, 3))}


class Counting:
    """Computes rows, and remembers which it was asked for; ``stop_at`` interrupts there."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.asked: list[tuple[int, int]] = []
        self._stop_at = stop_at

    def __call__(self, first: int, stop: int) -> Arrays:
        if first == self._stop_at:
            raise KeyboardInterrupt
        self.asked.append((first, stop))
        rows = np.arange(first, stop)
        return {"square": rows**2, "grid": np.ones((len(rows), 2, 3)) * rows[:, None, None]}


def fill(folder: Path, compute: Any, **more: Any) -> Arrays:
    return cached_rows(
        folder, **{"identity": {"base": "b1"}, "fields": FIELDS, "rows": 7, "compute": compute, "chunk": 3} | more
    )


def test_rows_are_computed_once_and_mapped(tmp_path: Path) -> None:
    first, again = Counting(), Counting()
    told: list[int] = []
    arrays = fill(tmp_path / "cache", first, progress=told.append)
    assert first.asked == [(0, 3), (3, 6), (6, 7)] and told == [0, 3, 3, 1]
    assert arrays["square"].tolist() == [n**2 for n in range(7)] and arrays["grid"].shape == (7, 2, 3)
    assert all(isinstance(array, np.memmap) and not array.flags.writeable for array in arrays.values())
    assert (fill(tmp_path / "cache", again)["grid"] == arrays["grid"]).all() and again.asked == []


@pytest.mark.parametrize("stop_at", [0, 3, 6])
def test_an_interrupted_cache_goes_on_with_the_same_bytes(tmp_path: Path, stop_at: int) -> None:
    fill(tmp_path / "whole", Counting())
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "cut", Counting(stop_at))
    rest = Counting()
    fill(tmp_path / "cut", rest)
    assert rest.asked == [(first, min(first + 3, 7)) for first in range(stop_at, 7, 3)]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def test_rows_that_were_written_but_not_counted_are_written_again(tmp_path: Path) -> None:
    """A kill between the two: the file is longer than the count says, and half a row hangs at its end."""
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, Counting(3))
    with (tmp_path / "square.bin").open("ab") as file:
        file.write(b"\xff" * 12)
    assert fill(tmp_path, Counting())["square"].tolist() == [n**2 for n in range(7)]


def test_what_was_made_of_something_else_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, Counting())
    with pytest.raises(ModelMismatch, match=r"made with another base \(b1, not b2\): name another folder, or delete it"):
        fill(tmp_path, Counting(), identity={"base": "b2"})
    with pytest.raises(ModelMismatch, match=r"holds 7 rows of .* not what is asked for"):
        fill(tmp_path, Counting(), rows=8)


@pytest.mark.parametrize("damage", ["manifest", "data", "gone"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    fill(tmp_path, Counting())
    if damage == "manifest":
        (tmp_path / "cache.json").write_text(json.dumps({"rows": 7}))
    elif damage == "data":
        (tmp_path / "grid.bin").write_bytes((tmp_path / "grid.bin").read_bytes()[:-1])
    else:
        (tmp_path / "grid.bin").unlink()
    with pytest.raises(DatasetError, match=r"is (cut|damaged): delete .*, it is computed again"):
        fill(tmp_path, Counting())


def test_a_cache_that_would_be_too_large_says_how_much_fits(tmp_path: Path) -> None:
    complaint = r"would take 140 bytes, but 139 are allowed: 6 of its 7 rows fit, so cut fewer slices"
    with pytest.raises(ConfigError, match=complaint):
        fill(tmp_path / "cache", Counting(0), limit_bytes=139)
    with pytest.raises(ConfigError, match="2,000,000,000 bytes at most"):
        fill(tmp_path / "cache", Counting(0), limit_bytes=LIMIT + 1)
    with pytest.raises(DatasetError, match="no rows"):
        fill(tmp_path / "cache", Counting(0), rows=0)
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_and_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, Counting(3))
    write = row_cache._write

    def to_a_full_disk(path: Path, values: Any, field: Field, first: int, stop: int) -> None:
        write(Path("/dev/full") if path.name == "grid.bin" else path, values, field, first, stop)

    monkeypatch.setattr(row_cache, "_write", to_a_full_disk)
    with pytest.raises(StorageFull, match="could not be written"):
        fill(tmp_path, Counting())
    monkeypatch.undo()
    rest = Counting()
    fill(tmp_path, rest)
    assert rest.asked == [(3, 6), (6, 7)]
