"""Ingest killed at random moments loses nothing that it acknowledged, doubles nothing, and ends up the same."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sysconfig
from multiprocessing.context import ForkServerContext
from pathlib import Path

import ingest_driver
import pytest

from megacontext.storage import Repository
from megacontext.testing.content import content_of

KILLS = 6
# As many steps as of a megabyte in blocks of 200 together, which is what is added where minutes may be taken.
CHARACTERS, BATCH = (1_000_000, 200) if os.environ.get("MEGACONTEXT_LONG_TESTS") else (250_000, 50)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes start from a server that has imported everything, in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    # Not the driver itself: the server knows installed packages only.
    context.set_forkserver_preload(
        ["megacontext.engine.ingest", "megacontext.engine.sources", "megacontext.testing.tiny_models"]
    )
    return context


def code() -> str:
    """The beginning of the standard library's largest modules."""
    folder = Path(sysconfig.get_path("stdlib"))
    largest = sorted(folder.glob("*.py"), key=lambda path: (-path.stat().st_size, path.name))
    text = "".join(path.read_text("utf-8", "replace") for path in largest[:20])
    return text[:CHARACTERS]


def told(log: Path) -> list[tuple[str, float]]:
    """What a process told: kind and number."""
    pairs = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(kind, float(number)) for kind, number in pairs]


@pytest.mark.slow
@pytest.mark.timeout(900)  # 5 seconds on an idle core
def test_kill_at_random_moments(tmp_path: Path, processes: ForkServerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    file, tokenizer = tmp_path / "text.py", tmp_path / "tokenizer.json"
    file.write_text(code(), "utf-8")
    ingest_driver.train_tokenizer(tokenizer, code()[:300_000])
    once, killed = (Repository.create(tmp_path / name) for name in ("once", "killed"))

    def run(memory: Repository, log: Path, *when: float) -> int | None:
        process = processes.Process(target=ingest_driver.add, args=(memory.root, tokenizer, file, log, BATCH, *when))
        process.start()
        process.join()
        return process.exitcode

    assert run(once, tmp_path / "once.log") == 0
    *steps, (_, seconds) = told(tmp_path / "once.log")
    blocks = int(steps[-1][1])
    dice = random.Random(7)
    moments = sorted(dice.randrange(blocks) for _ in range(KILLS - 2)) + [blocks, blocks]
    acknowledged = 0.0
    for attempt, die_at in enumerate(moments):
        log = tmp_path / f"{attempt}.log"
        assert run(killed, log, die_at, dice.random() * seconds / len(steps)) in (0, -signal.SIGPROF)
        happened = told(log)
        if happened and happened[0][0] == "resumed":
            assert happened[0][1] >= acknowledged
        # What was told before the last step was synced before that step began.
        acknowledged = max(acknowledged, *(number for kind, number in happened[:-1] if kind == "blocks"), 0)
        killed.snapshot()  # a reader is never in trouble
    assert acknowledged > 0
    assert run(killed, tmp_path / "last.log") == 0
    assert content_of(killed.snapshot()) == content_of(once.snapshot())
    assert killed.fsck().clean
    assert [commit.message for _, commit in killed.history()] == [commit.message for _, commit in once.history()]
