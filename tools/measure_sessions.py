"""Tokens per second of 1, 4 and 16 sessions, decoded together and one after the other: writes a result file.

::

    python -m tools.measure_sessions --json sessions.json PATH...     # files and folders that the memory holds
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from megacontext.engine.bundle import Bundle, load_bundle
from megacontext.engine.memory import Memory
from megacontext.evaluation.sessions_bench import SessionsBenchConfig, measure_sessions
from megacontext.evaluation.speed_bench.bases import bundle_of, parameters
from megacontext.evaluation.speed_bench.config import RandomLlama


def measure(bundle: Bundle, paths: list[str], config: SessionsBenchConfig) -> dict[str, Any]:
    """Records of one bundle over a memory of ``paths``."""
    with tempfile.TemporaryDirectory(prefix="megacontext-sessions-") as folder:
        memory = Memory.create(Path(folder) / "m.mc", bundle=bundle)
        receipt = memory.add(*paths)
        records = measure_sessions(memory, config, progress=lambda: print(".", end="", flush=True))
    print()
    for record in records:
        print("  ".join(f"{name} {value}" for name, value in record.items()))
    return {"parameters": parameters(bundle.base), "history": receipt.tokens, "records": records}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="files and folders that the memory holds")
    parser.add_argument("--json", type=Path, required=True, help="the result file")
    parser.add_argument("--model", default="bundled", help="a bundle, as for megacontext init")
    parser.add_argument("--random", action="store_true", help="measure a Llama of 100M random weights, too")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    config = SessionsBenchConfig(counts=tuple(given.counts), tokens=given.tokens, repeats=given.repeats)
    bundles = {"bundle": load_bundle(given.model)}
    if given.random:
        bundles["random"] = bundle_of(given.model, RandomLlama(), 0)
    machine = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "load": os.getloadavg()[0],
    }
    result = {"schema": 1, "kind": "sessions", "config": asdict(config), "machine": machine}
    result["bases"] = {name: measure(bundle, given.paths, config) for name, bundle in bundles.items()}
    given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
