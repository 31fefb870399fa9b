"""A process that opens a memory, decodes, and says how much memory it held at most: ``python -m … TASK``, a JSON object."""

from __future__ import annotations

import json
import sys
import threading

from megacontext.engine.memory import Memory
from megacontext.engine.policies import Recency
from megacontext.engine.session import SessionConfig
from megacontext.evaluation.speed_bench.bases import bundle_of
from megacontext.evaluation.speed_bench.config import RandomLlama
from megacontext.evaluation.speed_bench.machine import anonymous_bytes
from megacontext.storage import Repository

EVERY = 0.002


class Watch(threading.Thread):
    """Looks every two milliseconds until it is told to stop; ``most`` bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ended, self.most = threading.Event(), 0

    def run(self) -> None:
        while not self._ended.wait(EVERY):
            self.most = max(self.most, anonymous_bytes() or 0)

    def end(self) -> int:
        """The most that was seen."""
        self._ended.set()
        self.join()
        return max(self.most, anonymous_bytes() or 0)


def main(task: str) -> None:
    """Prints ``{"anonymous_bytes": …}``; 0 where the system does not tell."""
    given = json.loads(task)
    random = RandomLlama(**given["random"]) if given["random"] else None
    memory = Memory(Repository.open(given["folder"]), bundle_of(given["model"], random, given["seed"]))
    config = SessionConfig(budget=given["budget"], recent=given["recent"], refocus_every=given["interval"])
    # What making the models took is no part of a session.
    watch = Watch()
    watch.start()
    with memory.session(name=given["name"], policy=Recency(), config=config) as session:
        for _ in session.generate("", max_new_tokens=given["tokens"], stop_at_eos=False):
            pass
    print(json.dumps({"anonymous_bytes": watch.end()}))


if __name__ == "__main__":
    main(sys.argv[1])
