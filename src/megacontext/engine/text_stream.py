"""Text out of tokens, piece by piece: a piece is given once later tokens cannot change it."""

from __future__ import annotations

from typing import Any

_UNFINISHED = "\ufffd"


class TextStream:
    """Decodes a growing list of tokens; holds back bytes that are not yet a whole character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """The text that ``token`` makes certain; may be empty."""
        self._ids.append(token)
        text = self._decode()
        if text.endswith(_UNFINISHED):
            return ""
        return self._take(text)

    def flush(self) -> str:
        """What was held back."""
        return self._take(self._decode())

    def _take(self, text: str) -> str:
        piece = text[self._given :]
        self._given = len(text)
        # A line break is a safe place to begin anew, so that decoding does not grow with the answer.
        if piece.endswith("\n"):
            self._ids, self._given = [], 0
        return piece

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text
