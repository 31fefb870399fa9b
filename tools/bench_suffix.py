"""Measure the suffix index on the training packages as one growing history, and write a result file.

    python -m tools.bench_suffix --json benchmarks/results/DATE-MACHINE-suffix.json [--tokens N]

Searches are for stretches of validation packages. Rendered in docs/focus.md by ``python -m tools.render_results``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from megacontext.cli.bench import environment
from megacontext.evaluation.suffix_bench import SuffixBenchConfig, measure_suffixes
from megacontext.training.dataset import load_split


def main(argv: list[str] | None = None) -> int:
    """Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench_suffix", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the result is written")
    parser.add_argument("--data", type=Path, default=Path("data/python"), help="a prepared dataset")
    parser.add_argument("--tokens", type=int, default=max(SuffixBenchConfig.sizes), help="length of the longest history")
    args = parser.parse_args(argv)
    train, held_out = load_split(args.data, "train"), load_split(args.data, "validation")
    rest = load_split(args.data, "test")
    ids = np.concatenate([np.asarray(train.ids), np.asarray(rest.ids)]).astype(np.uint32)
    sizes = tuple(size for size in SuffixBenchConfig.sizes if size < args.tokens) + (args.tokens,)
    config = SuffixBenchConfig(sizes=sizes)
    found = measure_suffixes(ids, np.concatenate(held_out.histories()), config, progress=lambda text: print(text, flush=True))
    result = {"schema": 1, "kind": "suffix", "environment": environment(), "config": asdict(config), **found}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
