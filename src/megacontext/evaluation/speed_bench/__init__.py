"""``bench speed``: decoding, refocus and ingest over histories of growing length, beside the same base reading everything and
beside a plain sliding window, in one interleaved run (BENCHMARKS §3-4)."""

from megacontext.evaluation.speed_bench.config import RandomLlama, SpeedBenchConfig
from megacontext.evaluation.speed_bench.suite import run

__all__ = ["RandomLlama", "SpeedBenchConfig", "run"]
