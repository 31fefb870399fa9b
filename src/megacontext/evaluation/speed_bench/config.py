"""What ``bench speed`` measures, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from megacontext.engine.policies.table import PolicyName
from megacontext.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RandomLlama:
    """A Llama with random weights, for speed alone, and an untrained GistNet of inner width ``gist_hidden``."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 2560
    gist_hidden: int = 64


@dataclass(frozen=True, kw_only=True)
class SpeedBenchConfig:
    """``histories`` in tokens, ascending, and windows of ``budget`` entries with ``recent`` raw tokens.

    Every round, each arm decodes ``interval`` tokens, ``rounds`` times; ``full`` are the histories that the base reads whole
    as far as ``full_gigabytes`` of keys and values allow. ``random``: the second base (None: there is none). A prefill is timed
    in pieces of ``chunk`` tokens at ``depths``, in turns, ``repeats`` times. The trace of edits has ``refocuses``, is the one
    with the most expansions of ``tries`` continuations, and is read with each of ``intervals``. ``memory``: how many decoded
    tokens the peak of memory is looked for in (0: not at all). ``policy``: whose edits the trace is of.
    """

    histories: tuple[int, ...] = (4096, 16384, 65536, 262_144, 1_048_576)
    budget: int = 1024
    recent: int = 128
    interval: int = 16
    rounds: int = 5
    full: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 65536)
    full_gigabytes: float = 2.0
    first_token_history: int = 100_000
    chunk: int = 256
    depths: tuple[int, ...] = (0, 4096, 16384)
    repeats: int = 3
    refocuses: int = 6
    tries: int = 6
    intervals: tuple[int, ...] = (16, 32)
    reuse_items: int = 12
    memory: int = 48
    policy: PolicyName = "auto"
    random: RandomLlama | None = RandomLlama()
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.interval, self.rounds, self.chunk, self.repeats, self.refocuses, self.tries, *self.intervals, *self.full)
        if len(self.histories) < 2 or list(self.histories) != sorted(set(self.histories)):
            raise ConfigError("histories are at least two lengths, ascending")
        if min(counts) < 1 or len(self.depths) < 2 or min(self.depths) < 0:
            raise ConfigError("rounds, repeats and lengths are at least 1, and a prefill is timed at two depths or more")
        if self.histories[0] < 2 * self.budget:
            raise ConfigError("the shortest history has to be twice the budget: otherwise there is nothing to choose from")
