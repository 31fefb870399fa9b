"""Processes that end in the middle of what they do, without being asked."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable


def in_child(work: Callable[[], object]) -> int:
    """Runs `work` in a forked process; returns its exit code: 0, 1 for an error (which is printed), negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after(seconds: float) -> None:
    """Ends this process like SIGKILL would, at any instruction, after so many more seconds of processor time: spent, not
    passed, so that a busy machine makes no difference. Nobody handles this signal."""
    signal.setitimer(signal.ITIMER_PROF, max(seconds, 1e-6))
