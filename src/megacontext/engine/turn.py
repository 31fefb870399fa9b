"""One answer of a session, decoded step by step.

A plain loop over it is ``Session.generate``; a scheduler drives many of them, and forwards what they need together::

    while not turn.finished:
        if turn.due_refocus:
            session.refocus()
        logits = session.run(session.next_input())
        text = turn.accept(turn.choose(logits))
    rest = turn.end()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from megacontext.engine.sampling import Sampler, SamplingConfig
from megacontext.engine.text_stream import TextStream

if TYPE_CHECKING:
    from megacontext.engine.session import Session

NOTHING = np.zeros(0, dtype=np.int64)


class Turn:
    """Made by ``Session.begin_turn``. Given up at any step, it leaves the session as it is then."""

    def __init__(self, session: Session, limit: int, sampling: SamplingConfig, *, stop_at_eos: bool) -> None:
        self._session, self._left = session, limit
        tokenizer = session.bundle.tokenizer
        self._sampler, self._text = Sampler(sampling), TextStream(tokenizer)
        self._eos = tokenizer.eos_token_id if stop_at_eos else None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to decode."""
        return self._left <= 0

    @property
    def due_refocus(self) -> bool:
        """Whether the session should refocus before the next token."""
        return not self.finished and self._session.due_refocus

    def choose(self, logits: Tensor) -> int:
        """The token that follows, from logits float32 [V]."""
        recent = self._session.query() if self._sampler.looks_back else NOTHING
        return self._sampler(logits, torch.from_numpy(recent))

    def accept(self, token: int) -> str:
        """Take ``token`` as decoded; the text that it makes certain. The end-of-text token ends the turn and is not kept."""
        if token == self._eos:
            self._left = 0
            return ""
        self._session.accept(token)
        self._left -= 1
        return self._text.push(token)

    def end(self) -> str:
        """Acknowledge what was decoded; the text that was held back."""
        self._session.sync()
        return self._text.flush()
