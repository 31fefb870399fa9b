"""What a text search looks at: the passage of a block, and how often a query's terms occur in it.

The *passage* of a block is its text followed by the first `OVERLAP` tokens of the next block of the same document (for
the last block of a conversation, those of the unfinished one), so that what a block's edge cuts is found whole. A term
belongs to the block in whose own text it begins.

Texts and terms are compared *folded*: letters without case (Unicode case folding), each run of white space as one
space. A term that stands alone, not inside a longer word, counts 1, any other half.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.index.bm25 import F64, I64
from megacontext.storage.snapshot import Snapshot

OVERLAP = 16
INSIDE_A_WORD = 0.5
MAX_TERMS = 16
MAX_CHARACTERS = 256

# Texts of several sequences of token ids, special tokens left out.
Decode = Callable[[Sequence[Sequence[int]]], Sequence[str]]

_SPACE = re.compile(r"[\s\x00]+")
_PARTS = re.compile(r'"([^"]*)"|(\S+)')


@dataclass(frozen=True)
class Term:
    """What a block has to hold (`required`), or had better hold; `text` is folded, without space at its ends."""

    text: str
    required: bool = False


def folded(text: str) -> str:
    """The form in which texts are compared. Never fails: what is no Unicode text becomes U+FFFD."""
    return _SPACE.sub(" ", text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").casefold())


def terms_of(query: str) -> list[Term]:
    """The terms of what somebody typed: words are wanted, "phrases in quotes" required; nothing else has a meaning, so
    nothing is an error. A quote without its fellow is a character like any other.

    At most 16 terms, of at most 256 characters each, in their order, each once."""
    terms: dict[str, bool] = {}
    for phrase, word in _PARTS.findall(query):
        text = folded(phrase or word).strip()[:MAX_CHARACTERS].strip()
        if text:
            terms[text] = terms.get(text, False) or bool(phrase)
    return [Term(text, required) for text, required in terms.items()][:MAX_TERMS]


def passages(snapshot: Snapshot, blocks: I64, decode: Decode) -> list[str]:
    """The folded passages of complete blocks at int64 [k] indices, read from the snapshot; what is denied is empty."""
    following = np.minimum(blocks + 1, snapshot.blocks - 1)
    pairs = np.stack([blocks, following], axis=1)
    same = (following > blocks) & (snapshot.shown_at(pairs.ravel())[1].reshape(-1, 2) > 0).all(axis=1)
    documents = snapshot.documents_at(pairs[same].ravel()).reshape(-1, 2)
    same[same] = documents[:, 0] == documents[:, 1]
    own = _tokens(snapshot, blocks, BLOCK)
    after = _tokens(snapshot, following, np.where(same, OVERLAP, 0))
    if len(snapshot.open_ids) and snapshot.document_of(snapshot.blocks).start_block < snapshot.blocks:
        # The unfinished block follows the last one, as both are of the same conversation.
        for row in np.flatnonzero(blocks == snapshot.blocks - 1).tolist():
            after[row] = snapshot.open_ids[:OVERLAP].tolist()
    # Decoded together, since a character may lie across the edge.
    return [folded(text) for text in decode([first + then for first, then in zip(own, after, strict=True)])]


def own_texts(snapshot: Snapshot, blocks: I64, decode: Decode) -> list[str]:
    """How the passages of blocks [k] begin: what is of the block itself. A character that lies across its end is."""
    return [folded(text) for text in decode(_tokens(snapshot, blocks, BLOCK))]


def occurrences(snapshot: Snapshot, blocks: I64, terms: Sequence[Term], decode: Decode) -> F64:
    """How often each of t terms occurs in blocks [k], float64 [k, t]; see the module for halves."""
    texts = passages(snapshot, blocks, decode)
    found = np.zeros((len(blocks), len(terms)))
    rows = [row for row, text in enumerate(texts) if any(term.text in text for term in terms)]
    own = own_texts(snapshot, blocks[rows], decode)
    for at, term in enumerate(terms):
        pattern = _whole_or_not(term.text)
        for row, reach in zip(rows, map(len, own), strict=True):
            if term.text in texts[row]:
                begins = (match for match in pattern.finditer(texts[row]) if match.start() < reach)
                found[row, at] = sum(INSIDE_A_WORD if match.lastgroup == "inside" else 1.0 for match in begins)
    return found


def _tokens(snapshot: Snapshot, blocks: I64, most: int | I64) -> list[list[int]]:
    """The first real tokens of blocks [k], at most `most` (one number, or one for each)."""
    ids, fill = snapshot.shown_at(blocks)
    return [row[:count] for row, count in zip(ids.tolist(), np.minimum(fill, most).tolist(), strict=True)]


def _whole_or_not(text: str) -> re.Pattern[str]:
    """Matches a term; the group `inside` is there where it stands inside a longer word."""
    escaped = re.escape(text)
    before = r"(?<!\w)" if re.match(r"\w", text) else ""
    behind = r"(?!\w)" if re.search(r"\w$", text) else ""
    return re.compile(f"{before}{escaped}{behind}|(?P<inside>{escaped})")
