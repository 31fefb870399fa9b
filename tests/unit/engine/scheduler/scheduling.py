"""What the tests of the scheduler share."""

from __future__ import annotations

from megacontext.engine.memory import Memory
from megacontext.engine.scheduler import Scheduler
from megacontext.engine.session import Session

TEXT = "".join(f"def function_{n}(a, b):\n    return a * {n} + b - {n * 7 % 13}\n\n" for n in range(60))
KINDS = [("llama", False), ("llama", True), ("qwen3", True), ("gpt2", False), ("gpt2", True), ("mistral", False)]
BUDGETS = (192, 256, 320)


def small(memory: Memory, **settings: int) -> Scheduler:
    return memory.scheduler(**{"rows": 4, "slots": 320, "chunk": 64, **settings})


def finish(scheduler: Scheduler) -> None:
    while scheduler.step():
        pass


def is_free(memory: Memory, session: Session) -> bool:
    """Whether the session's branch can be written by somebody else."""
    memory.session(name=session.branch.removeprefix("sessions/"), budget=192).close()
    return True
