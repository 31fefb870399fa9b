"""How we know: items, arms, paired intervals. See ``docs/benchmarks.md``."""
