"""``bench recall``: needles far back in a real memory, generated, seeded and judged by code (BENCHMARKS §2)."""

from megacontext.evaluation.recall_bench.suite import RecallConfig, Stage, run

__all__ = ["RecallConfig", "Stage", "run"]
