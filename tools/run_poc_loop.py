"""A text stream through ingest, focus and decode; every edit is told and the invariants are checked at every step."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from megacontext.engine.bundle import BUNDLED
from megacontext.engine.checks import SessionChecks
from megacontext.engine.memory import Memory
from megacontext.engine.policies.table import PolicyName
from megacontext.engine.session import SessionConfig
from megacontext.errors import MegaContextError
from megacontext.training.config import load_config
from megacontext.training.frozen import Frozen


class LoopConfig(Frozen):
    """``sources`` are ingested, then each turn is appended, refocused and continued; sizes are in tokens.

    ``memory``: the folder to keep it in (none: a temporary one); ``policy``: as for a session.
    """

    model: str = BUNDLED
    memory: Path | None = None
    sources: tuple[str, ...]
    turns: tuple[str, ...]
    policy: PolicyName = "auto"
    budget: int = SessionConfig.budget
    recent: int = SessionConfig.recent
    refocus_every: int = SessionConfig.refocus_every
    tokens_per_turn: int = 32


def run(config: LoopConfig, tell: Callable[[dict[str, Any]], None]) -> None:
    """Hands one record a step to ``tell``; the first broken invariant raises InvariantError."""
    settings = SessionConfig(budget=config.budget, recent=config.recent, refocus_every=config.refocus_every)
    with _memory(config) as memory:
        receipt = memory.add(*config.sources)
        tell({"event": "ingest", "documents": len(receipt.added), "tokens": receipt.tokens, "blocks": receipt.blocks})
        checks = SessionChecks(tell)
        with memory.session(config=settings, policy=config.policy, listener=checks) as session:
            checks.watch(session)
            for turn in config.turns:
                text = "".join(session.generate(turn, max_new_tokens=config.tokens_per_turn))
                tell({"event": "turn", "prompt": turn, "text": text, "strip": session.strip()})
        stats = session.cache_stats
        tell({"event": "end", **checks.counts, "slots_read": stats.forwarded, "slots_reused": stats.reused})


@contextmanager
def _memory(config: LoopConfig) -> Iterator[Memory]:
    if config.memory is not None:
        yield Memory.open(config.memory) if config.memory.is_dir() else Memory.create(config.memory, model=config.model)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Memory.create(Path(folder) / "loop.mc", model=config.model)


def main(argv: list[str] | None = None) -> int:
    """Returns 0, or 2 where the input cannot be used or an invariant broke."""
    parser = argparse.ArgumentParser(prog="python -m tools.run_poc_loop", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML, such as configs/poc_loop.yaml")
    parser.add_argument("--log", type=Path, help="write JSON lines here instead of to the terminal")
    args = parser.parse_args(argv)
    try:
        with args.log.open("w") if args.log else nullcontext(sys.stdout) as log:
            run(load_config(LoopConfig, args.config), lambda record: print(json.dumps(record), file=log, flush=True))
    except MegaContextError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
