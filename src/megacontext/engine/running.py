"""A request that is being served: what its session does next, one piece at a time."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from megacontext.engine.assemble import IntArray
from megacontext.engine.batch_reader import Reading
from megacontext.engine.policies import FocusPolicy
from megacontext.engine.request import Ended, Request
from megacontext.engine.turn import Turn
from megacontext.errors import ConfigError


class Running:
    """First its prompt is appended, piece by piece; then the window is refocused without a limit; then tokens are decoded.

    ``reading`` is what has to go through the base before the next token; ``since`` counts the tokens of this stay in a row.
    """

    def __init__(self, request: Request) -> None:
        self.request, self.session = request, request.session
        self.turn: Turn | None = None
        self.reading: Reading | None = None
        self.since = 0
        self.ended = Ended.LENGTH
        self._prompt: IntArray | None = None
        self._begun = False

    @classmethod
    def of(cls, request: Request) -> Running:
        """The one that was parked for ``request``, or a new one."""
        parked = request.parked
        request.parked = None
        return parked if parked is not None else cls(request)

    def park(self) -> None:
        """Give up the row for a while."""
        self.since, self.request.parked = 0, self

    def append(self, most: int) -> int:
        """Append at most ``most`` tokens of the prompt; how many they were. Begins the turn when none is left."""
        if self._prompt is None:
            tokenizer = self.session.bundle.tokenizer
            ids = tokenizer(self.request.prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            self._prompt = np.asarray(ids, dtype=np.int64)
        now, self._prompt = self._prompt[:most], self._prompt[most:]
        self.session.append_tokens(now)
        if not len(self._prompt):
            if self.session.window.timeline.tokens == 0:
                raise ConfigError("there is nothing to continue: give a prompt or add documents first")
            request = self.request
            self.turn = Turn(self.session, request.max_new_tokens, request.sampling, stop_at_eos=request.stop_at_eos)
        return len(now)

    @property
    def due(self) -> bool:
        """Whether its session has to refocus before anything is read."""
        return self.turn is not None and self.reading is None and (not self._begun or self.turn.due_refocus)

    def refocus(self, policy: FocusPolicy) -> None:
        """Let ``policy`` look at the window: at the beginning of a turn without a limit on edits."""
        self.session.refocus(unlimited=not self._begun, policy=policy)
        self._begun = True

    @property
    def finished(self) -> bool:
        """Whether nothing is left to decode."""
        return self.turn is not None and self.turn.finished

    def accept(self, logits: Tensor) -> None:
        """Choose the next token from logits float32 [V] and take it."""
        assert self.turn is not None
        token = self.turn.choose(logits)
        before = self.session.window.timeline.tokens
        piece = self.turn.accept(token)
        kept = self.session.window.timeline.tokens > before
        if not kept:
            self.ended = Ended.END_OF_TEXT
        self.since += 1
        self.request.push(piece, tokens=int(kept))

    def end(self) -> str:
        """Acknowledge what was written; the text that was held back."""
        if self.session.closed:
            return ""
        if self.turn is None:
            self.session.sync()
            return ""
        return self.turn.end()
