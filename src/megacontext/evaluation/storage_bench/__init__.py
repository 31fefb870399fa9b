"""``bench storage``: durable appends, reads, opening, branching and comparing, beside a plain file written with the same
syncs, in one interleaved run (BENCHMARKS §3-4)."""

from megacontext.evaluation.storage_bench.config import StorageBenchConfig
from megacontext.evaluation.storage_bench.suite import run

__all__ = ["StorageBenchConfig", "run"]
