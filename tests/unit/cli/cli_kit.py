"""Texts to add, and what a call of the command line leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TEXTS = {
    "src/alpha.py": "".join(f"def alpha_{n}(value):\n    return value * {n}\n\n" for n in range(60)),
    "src/beta.py": "".join(f"class Beta{n}:\n    retry_policy = {n}\n\n" for n in range(40)),
    "notes.md": "# Notes\n\nThe retry policy is exponential. Grüße, 你好.\n",
}


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout, which has to be one JSON object and nothing else."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Cli = Callable[..., Answer]
