"""From a text to blocks of token ids, with where in the text each block starts.

Long texts are tokenized in pieces, so that memory stays bounded; where they are cut depends on text and tokenizer alone. A
piece ends where a line ends; within a line that is longer than a piece, before a space or between two kinds of letters, where
the tokens of the text around there are those of both sides: there they are the tokens of the whole. A line in which there is
no such place, with no white space in it, say, is cut as it comes: the tokens beside the cut may be others, and the text comes
back all the same. What looks like a special token in a text is text.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megacontext.core import BLOCK
from megacontext.errors import ConfigError

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]

PIECE_CHARS = 2**18
# How far before the end of a piece a good place to cut is looked for.
SEARCH_CHARS = 2**16
# Of so many places within a line it is asked whether the text may be cut there, by this much text before and after each.
TRIED_SEAMS = 64
AROUND_CHARS = 256
UNKNOWN = -1


class TextBlocks(NamedTuple):
    """Consecutive blocks of one document.

    `ids` uint32 [n, 32]; `fill` uint8 [n], real tokens of each, fewer than 32 only in the document's last block; `chars`
    (from 0) and `lines` (from 1) int64 [n], where each block's first token starts in the text, -1 where the tokenizer does
    not tell; `chars_done`, how far the text has been read; `exact`, whether its tokens so far decode to just that text.
    """

    ids: U32
    fill: U8
    chars: I64
    lines: I64
    chars_done: int
    exact: bool

    def part(self, start: int, stop: int) -> TextBlocks:
        """Blocks `start:stop`."""
        rows = slice(start, stop)
        done = self.chars_done if stop >= len(self.ids) else max(int(self.chars[stop]), 0)
        return TextBlocks(self.ids[rows], self.fill[rows], self.chars[rows], self.lines[rows], done, self.exact)


class TextCutter:
    """Cuts texts with one tokenizer. The end-of-text token, where there is one, is each document's last real token."""

    def __init__(self, tokenizer: Any, *, piece_chars: int = PIECE_CHARS) -> None:
        if piece_chars < 1:
            raise ConfigError(f"piece_chars must be at least 1, not {piece_chars}")
        self._tokenizer, self._piece_chars = tokenizer, piece_chars
        eos = tokenizer.eos_token_id
        self._end: list[int] = [] if eos is None else [int(eos)]
        pad = tokenizer.pad_token_id if eos is None else eos
        self.filling = int(pad) if pad is not None else 0
        # Tokenizers that mark the beginning of a text leave a trace at each cut.
        self._joins = self._decoded(np.concatenate([self._encode("a b")[0], self._encode("\nc")[0]])) == "a b\nc"

    def cut(self, text: str) -> Iterator[TextBlocks]:
        """The blocks of a document, piece by piece; the last piece ends it."""
        # What is not in a full block yet, and where it starts; `line` is the line of character `at`.
        rest = _Rest(np.zeros(0, np.uint32), np.zeros(0, np.int64), np.zeros(0, np.int64))
        at, line, exact = 0, 1, True
        while at < len(text):
            stop = self._cut(text, at)
            piece = text[at:stop]
            ids, starts = self._encode(piece, first=-len(rest.ids) % BLOCK)
            exact = exact and self._decoded(ids) == piece and (self._joins or len(piece) == len(text))
            breaks = np.flatnonzero(np.frombuffer(piece.encode("utf-32-le"), np.uint32) == ord("\n"))
            lines = np.where(starts < 0, UNKNOWN, line + np.searchsorted(breaks, starts))
            rest = rest.then(ids, np.where(starts < 0, UNKNOWN, starts + at), lines)
            at, line = stop, line + len(breaks)
            if at < len(text):
                blocks, rest = rest.full_blocks(at, exact)
                yield blocks
        if self._end and len(rest.ids) % BLOCK == 0:
            rest = rest.then(np.zeros(0, np.uint32), np.array([at]), np.array([line]))
        yield rest.then(np.array(self._end, np.uint32)).filled(self.filling, at, exact)

    def _cut(self, text: str, start: int) -> int:
        """Where the piece that starts at `start` ends."""
        stop = start + self._piece_chars
        if stop >= len(text):
            return len(text)
        if (at := _line_end(text, start, stop)) >= 0:
            return at
        for at in islice(_seams(text, max(start + 1, stop - SEARCH_CHARS), stop), TRIED_SEAMS):
            before, after = text[max(start, at - AROUND_CHARS) : at], text[at : at + AROUND_CHARS]
            whole, parts = self._encode(before + after)[0], [self._encode(part)[0] for part in (before, after)]
            if np.array_equal(whole, np.concatenate(parts)):
                return at
        return stop

    def _encode(self, text: str, first: int = 0) -> tuple[U32, I64]:
        """Token ids, and the characters at which tokens `first`, `first` + 32, … start (-1: not known)."""
        encoded = self._tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            verbose=False,
        )
        ids = np.array(encoded["input_ids"], np.uint32)
        places = range(first, len(ids), BLOCK)
        if not encoded.encodings:
            return ids, np.full(len(places), UNKNOWN, np.int64)
        spans = (encoded.encodings[0].token_to_chars(place) for place in places)
        return ids, np.array([UNKNOWN if span is None else span[0] for span in spans], np.int64)

    def _decoded(self, ids: U32) -> str:
        text: str = self._tokenizer.decode(ids.astype(np.int64), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


class _Rest(NamedTuple):
    """Tokens [k], and where each block that they begin starts."""

    ids: U32
    chars: I64
    lines: I64

    def then(self, ids: U32, chars: I64 | None = None, lines: I64 | None = None) -> _Rest:
        more = [np.zeros(0, np.int64) if part is None else part for part in (chars, lines)]
        return _Rest(
            np.concatenate([self.ids, ids]), np.concatenate([self.chars, more[0]]), np.concatenate([self.lines, more[1]])
        )

    def full_blocks(self, done: int, exact: bool) -> tuple[TextBlocks, _Rest]:
        """Its full blocks, and what is left."""
        count = len(self.ids) // BLOCK
        ids, rest = self.ids[: count * BLOCK], self.ids[count * BLOCK :]
        fill = np.full(count, BLOCK, np.uint8)
        blocks = TextBlocks(ids.reshape(count, BLOCK), fill, self.chars[:count], self.lines[:count], done, exact)
        return blocks, _Rest(rest, self.chars[count:], self.lines[count:])

    def filled(self, filling: int, done: int, exact: bool) -> TextBlocks:
        """All of it, with the last block filled up."""
        missing = -len(self.ids) % BLOCK
        blocks, _ = self.then(np.full(missing, filling, np.uint32)).full_blocks(done, exact)
        blocks.fill[-1:] -= np.uint8(missing)
        return blocks


def _line_end(text: str, start: int, stop: int) -> int:
    """The last line break before `stop` behind a letter or digit, since what tokenizers join there differs; -1: none near."""
    at = stop
    while (at := text.rfind("\n", max(start + 1, stop - SEARCH_CHARS), at)) > 0:
        if text[at - 1].isalnum():
            return at
    return -1


def _seams(text: str, start: int, stop: int) -> Iterator[int]:
    """Places where words may part, from `stop` back to `start`: before spaces first, then where kinds of characters change."""
    at = stop
    while (at := text.rfind(" ", start, at)) > 0:
        if text[at - 1].isalnum():
            yield at
    for at in range(stop, max(start, stop - AROUND_CHARS), -1):
        if text[at - 1].isalnum() != text[at].isalnum():
            yield at
