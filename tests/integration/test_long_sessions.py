"""Long lives and many lives: memory and file handles stay flat."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from megacontext.core import AllocatorConfig
from megacontext.engine.memory import Memory
from megacontext.engine.reuse import Patched
from megacontext.engine.sampling import SamplingConfig
from megacontext.engine.session import SessionConfig
from megacontext.testing.tiny_bundle import save_tiny_bundle

TEXT = "".join(f"def function_{n}(a, b):\n    return a * {n} + b\n\n" for n in range(60))
CONFIG = SessionConfig(
    budget=256, recent=32, refocus_every=16, allocator=AllocatorConfig(expand_threshold=0.0), reuse=Patched()
)
SAMPLED = SamplingConfig(temperature=1.0, seed=3)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A small memory on a disk that need not be waited for."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: None)
    made = Memory.create(tmp_path / "m.mc", model=save_tiny_bundle(tmp_path / "bundle", key_value=True))
    made.add(text=TEXT, name="functions")
    return made


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def handles() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts what Linux tells in /proc")


@linux
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [12, pytest.param(1000, marks=pytest.mark.long)])
def test_sessions_that_were_closed_leave_nothing(memory: Memory, count: int) -> None:
    held, first = 0, 0
    for number in range(count):
        with memory.session(config=CONFIG, policy="recency", name=f"s{number}") as session:
            list(session.generate("def f", max_new_tokens=2, sampling=SAMPLED, stop_at_eos=False))
        memory.drop_session(session.branch)
        if number == count // 4:
            held, first = handles(), resident()
    assert handles() <= held
    assert count < 1000 or resident() - first < 32 << 20


@linux
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("tokens", [300, pytest.param(20_000, marks=pytest.mark.long)])
def test_a_long_session_needs_no_more_memory_than_a_short_one(memory: Memory, tokens: int) -> None:
    with memory.session(config=CONFIG, policy="random", name="long") as session:
        list(session.generate("def f", max_new_tokens=tokens // 4, sampling=SAMPLED, stop_at_eos=False))
        first, opened = resident(), handles()
        for _ in range(3):
            list(session.generate("x", max_new_tokens=tokens // 4, sampling=SAMPLED, stop_at_eos=False))
        assert handles() <= opened
        # Tokens and gists that are not committed yet are held: a few bytes each with this model.
        assert resident() - first < 32 << 20
        assert session.window.cost <= CONFIG.budget
