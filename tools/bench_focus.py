"""Measure focus policies over long histories of validation packages, and write a result file.

    python -m tools.bench_focus --json benchmarks/results/DATE-MACHINE-focus.json [--tokens N …] [--items N] [--arms NAME …]

Arms: hybrid and its ablations, lens, suffix, retrieval, recency, random, nothing opened, and the newest raw tokens. Where a
history is longer than the validation packages, training packages follow them. Rendered in docs/focus.md by
``python -m tools.render_results``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np

from megacontext.cli.bench import environment
from megacontext.core import FocusScores
from megacontext.engine.bundle import Bundle, load_bundle
from megacontext.engine.policies import FocusPolicy, FocusView, Hybrid, HybridConfig
from megacontext.engine.policies.lens import Lens
from megacontext.engine.policies.table import policy_named
from megacontext.evaluation.long_history import (
    File,
    LongHistoryConfig,
    draw,
    measure,
    split_files,
    summary,
    temporary_memory,
)
from megacontext.training.dataset import Blocks, load_split

ABLATIONS: Mapping[str, HybridConfig] = {
    "hybrid_no_suffixes": HybridConfig(suffixes=0),
    "hybrid_no_skips": HybridConfig(skips=0),
    "hybrid_no_words": HybridConfig(words=0),
    "hybrid_and_gists": HybridConfig(gists=16),
}


class Nothing:
    """Leaves the window as it is."""

    name = "nothing"

    def score(self, view: FocusView) -> FocusScores:
        """Zeros."""
        return FocusScores.zeros(view.window)


def arms_of(bundle: Bundle) -> dict[str, FocusPolicy]:
    """Every arm, by name."""
    assert bundle.lens is not None
    lens = Lens(bundle.lens, bundle.base)
    named: dict[str, FocusPolicy] = {"nothing": Nothing()}
    if not lens.centred:
        named["hybrid_and_lens"] = Hybrid(lens)
    named |= {name: policy_named(name, bundle) for name in ("recency", "retrieval", "suffix", "lens", "hybrid")}
    return named | {name: Hybrid(None, config) for name, config in ABLATIONS.items()}


def files_of(blocks: Blocks) -> list[File]:
    """The files of a split, in its order."""
    starts = np.flatnonzero(np.diff(blocks.document.astype(np.int64), prepend=-1))
    found = []
    for a, b in pairwise([*starts.tolist(), len(blocks)]):
        real = np.arange(32) < blocks.fill[a:b, None]
        package, name = int(blocks.package[a]), str(int(blocks.document[a]))
        found.append(File(package=package, name=name, ids=blocks.ids[a:b][real].astype(np.int64)))
    return found


class _Until:
    """Prints what an item gave, and ends the run when its time is over."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def __call__(self, number: int, nll: Mapping[str, float]) -> bool:
        print(f"item {number}", " ".join(f"{name} {value:.3f}" for name, value in nll.items()), flush=True)
        return time.monotonic() < self._end


def main(argv: list[str] | None = None) -> int:
    """Returns 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench_focus", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the result is written")
    parser.add_argument("--data", type=Path, default=Path("data/python"), help="a prepared dataset")
    parser.add_argument("--model", default="bundled", help="a bundle")
    parser.add_argument("--tokens", type=int, nargs="+", default=[65_536, 262_144], help="lengths of history")
    parser.add_argument("--items", type=int, default=LongHistoryConfig.items)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="of each length; then the items so far are all there are")
    parser.add_argument("--arms", nargs="*", default=[], help="only these; all unless told")
    args = parser.parse_args(argv)
    bundle = load_bundle(args.model)
    arms = {name: arm for name, arm in arms_of(bundle).items() if not args.arms or name in args.arms}
    told, kept = split_files(files_of(load_split(args.data, "validation")))
    config, lengths = LongHistoryConfig(items=args.items, seed=args.seed), []
    for tokens in args.tokens:
        files = list(np.random.default_rng(args.seed).permutation(np.array(told, dtype=object)))
        if sum(len(file.ids) for file in files) < tokens:
            files += files_of(load_split(args.data, "train"))
        print(f"{tokens:,} tokens", flush=True)
        print(f"{tokens:,} tokens", flush=True)
        folder, memory = temporary_memory(bundle, files, tokens)
        with folder:
            snapshot = memory.snapshot()
            there = {record.source.split("/")[0] for record in snapshot.documents}
            items = draw([file for file in kept if f"text:{file.package}" in there], config)
            began = time.process_time()
            outcome = measure(memory, items, arms, config, progress=_Until(args.minutes))
            spent = time.process_time() - began
            lengths.append({"tokens": snapshot.blocks * 32, "seconds": spent, **summary(outcome, "hybrid")})
    result = {"schema": 1, "kind": "focus", "environment": environment(), "config": asdict(config), "lengths": lengths}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for length in lengths:
        print(length["tokens"], length["items"], length["files"], f"{length['seconds']:.0f} s")
        for name, arm in length["arms"].items():
            ci = arm["reference_minus_arm_ci"]
            print(
                f"  {name:22s} {arm['nll']:.4f} hybrid-arm {arm['reference_minus_arm']:+.4f} [{ci[0]:+.4f}, {ci[1]:+.4f}]"
                f"  ms {arm['refocus_ms']} deep {arm['deep_blocks']}"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
