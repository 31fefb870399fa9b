from __future__ import annotations

from pathlib import Path

import pytest

from megacontext.engine.memory import Memory
from megacontext.errors import ConfigError
from megacontext.evaluation.sessions_bench import SessionsBenchConfig, measure_sessions
from megacontext.testing.tiny_bundle import save_tiny_bundle


def test_both_arms_say_the_same_and_leave_nothing_behind(tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "m.mc", model=save_tiny_bundle(tmp_path / "bundle", key_value=True))
    memory.add(text="".join(f"def f{n}(a):\n    return a + {n}\n" for n in range(80)))
    branches, done = memory.repository.branches(), []
    config = SessionsBenchConfig(counts=(1, 3), tokens=8, prompt=40, budget=256, repeats=1)
    records = measure_sessions(memory, config, progress=lambda: done.append(1))
    assert [(each["sessions"], each["arm"]) for each in records] == [
        (n, arm) for n in (1, 3) for arm in ("together", "in turn")
    ]
    assert all(each["same_text"] == 1.0 and each["tokens_per_s"] > 0 for each in records)
    assert [each["tokens"] for each in records] == [8, 8, 24, 24]
    assert memory.repository.branches() == branches and len(done) == 4
    with pytest.raises(ConfigError, match="holds less"):
        measure_sessions(memory, SessionsBenchConfig(prompt=100_000))
    with pytest.raises(ConfigError, match="at least 1"):
        SessionsBenchConfig(counts=(0,))
