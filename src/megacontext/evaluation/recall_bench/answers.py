"""Asking: greedy answers from a session over a memory, or from the base over raw tokens.

Shapes: n tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megacontext.engine.memory import Memory
from megacontext.evaluation.recall_bench.tasks import Case
from megacontext.models import BaseLM

IntArray = npt.NDArray[np.int64]
SLACK = 3
"""Tokens decoded beyond the answer, so that one that goes on is seen."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """``exact``: greedy output was right. ``rank``: of the answer's first token among those of the distractors (1: first)."""

    exact: bool
    rank: int
    seconds: float


def ask_memory(memory: Memory, case: Case, *, budget: int, policy: Any, name: str) -> Answer:
    """A session of its own, with the question as its only text; dropped afterwards."""
    started = time.perf_counter()
    tokenizer = memory.bundle.tokenizer
    with memory.session(budget=budget, policy=policy, name=name) as session:
        turn = session.begin_turn(case.asked, max_new_tokens=_limit(case, tokenizer))
        text, rank = "", 0
        while not turn.finished:
            if turn.due_refocus:
                session.refocus()
            logits = session.logits()
            rank = rank or _rank(logits, case, tokenizer)
            text += turn.accept(turn.choose(logits))
        text += turn.end()
    memory.drop_session(session.branch)
    return Answer(exact=case.judge(text), rank=rank, seconds=time.perf_counter() - started)


def ask_base(base: BaseLM, context: IntArray, case: Case) -> Answer:
    """The base behind raw ``context`` int64 [n] and the question."""
    started = time.perf_counter()
    tokenizer = base.tokenizer
    ids = np.concatenate([context, _ids(case.asked, tokenizer)])
    cache, given, decoded, rank = base.new_cache(), ids, [], 0
    for _ in range(_limit(case, tokenizer)):
        places = torch.arange(len(ids) - len(given), len(ids))[None]
        with torch.no_grad():
            embeds = base.embed(torch.from_numpy(given)[None])
            logits = base.forward(embeds, places.to(base.device), cache=cache, logits_from=len(given) - 1).logits[0, -1]
        rank = rank or _rank(logits, case, tokenizer)
        decoded.append(int(logits.argmax()))
        given = np.array(decoded[-1:])
        ids = np.concatenate([ids, given])
    text = str(tokenizer.decode(decoded, skip_special_tokens=True))
    return Answer(exact=case.judge(text), rank=rank, seconds=time.perf_counter() - started)


def context_of(texts: Sequence[str], tokenizer: Any, most: int) -> IntArray:
    """The newest ``most`` tokens of ``texts``, int64 [≤ most]."""
    return _ids("".join(texts), tokenizer)[-most:]


def _ids(text: str, tokenizer: Any) -> IntArray:
    return np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)


def _limit(case: Case, tokenizer: Any) -> int:
    """Tokens to decode: the answer's, or for several values the lines that name them, and a little more."""
    longest = sum(len(_ids(answer if len(case.answers) == 1 else case.asked + answer, tokenizer)) for answer in case.answers)
    return longest + SLACK


def _rank(logits: torch.Tensor, case: Case, tokenizer: Any) -> int:
    asked = len(_ids(case.asked, tokenizer))
    first = [int(_ids(case.asked + text, tokenizer)[asked]) for text in (case.answers[0], *case.others)]
    mine = float(logits[first[0]])
    return 1 + sum(float(logits[token]) > mine for token in set(first[1:]) - {first[0]})
