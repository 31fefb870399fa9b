"""Eight conversations over one memory, answered together: ``python examples/many_sessions.py`` (CPU, under half a minute).

Each session writes to a branch of its own; the scheduler decodes all of them in one pass of the model per token.
"""

from __future__ import annotations

import inspect
import json
import tempfile
import time
from pathlib import Path

import megacontext

PROMPTS = [f"def {name}(" for name in ("load", "dump", "decode", "encode", "scan", "parse", "main", "read")]


def main(sessions: int = len(PROMPTS), tokens: int = 24) -> list[str]:
    """Answer the first ``sessions`` prompts with ``tokens`` tokens each; returns the answers."""
    with tempfile.TemporaryDirectory() as folder:
        memory = megacontext.init(Path(folder) / "many.mc")
        memory.add(Path(inspect.getfile(json)).parent)
        opened = [memory.session(budget=512) for _ in PROMPTS[:sessions]]
        started = time.perf_counter()
        with memory.scheduler(rows=8, slots=512) as scheduler:
            requests = [
                scheduler.submit(session, prompt, max_new_tokens=tokens)
                for session, prompt in zip(opened, PROMPTS, strict=False)
            ]
            print(f"{PROMPTS[0]}", end="")
            for piece in requests[0]:  # comes while the others are decoded, too
                print(piece, end="", flush=True)
            answers = [request.result().text for request in requests]
        seconds = time.perf_counter() - started
        for session in opened:
            session.close()
    for prompt, answer in zip(PROMPTS[1:], answers[1:], strict=False):
        print(f"\n{prompt}{answer}")
    decoded = sum(request.tokens for request in requests)
    print(f"\n{decoded} tokens for {len(opened)} sessions in {seconds:.1f} s, {scheduler.stats.passes} passes of the model.")
    return answers


if __name__ == "__main__":
    main()
