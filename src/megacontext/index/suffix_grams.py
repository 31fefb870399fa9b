"""Names for the last n tokens at every place: what the suffix index sorts.

A *place* is a position of the timeline that holds a real token and has another one of the same document right before
it: something stands there, and something led up to it. The *gram* of length n at a place are the n tokens in front of
it, all of that document and without a gap. It is named by 32 bits of a polynomial hash over its tokens, for which all
lengths that are powers of two follow from one another (Karp and Rabin 1987; the doubling is Manber and Myers', 1993).
Two grams may share a name, so whoever finds a place looks at its tokens.

Shapes: k blocks of 32 tokens, L lengths, m places.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megacontext.core.node import BLOCK
from megacontext.index.bm25 import I64, U8, U32, real_tokens

LENGTHS = (1, 2, 4, 8, 16)
"""Lengths of the grams that are indexed, ascending; each is the double of the one before it."""

U64 = NDArray[np.uint64]

_FACTOR = 0x9E3779B97F4A7C15
_SEEDS = (0xD6E8FEB86659FD93, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3, 0x589965CC75374CC3)
_WORD = 1 << 64


class Places(NamedTuple):
    """Grams by name: `names` uint32 [m] and the `places` uint32 [m] behind them, counted from a first token."""

    names: U32
    places: U32


def reach_of(fill: U8, documents: U32 | I64) -> I64:
    """How many real tokens of one document, without a gap, end at each slot of consecutive blocks: int64 [k * 32]; 0 for
    filling."""
    real = real_tokens(fill)
    begins = np.zeros((len(fill), BLOCK), np.bool_)
    if len(fill):
        begins[0, 0] = True
        begins[1:, 0] = (documents[1:] != documents[:-1]) | (fill[:-1] < BLOCK)
    at = np.arange(real.size, dtype=np.int64)
    first = np.maximum.accumulate(np.where(begins.ravel(), at, 0))
    return np.where(real.ravel(), at - first + 1, 0)


def grams(ids: U32, fill: U8, documents: U32, lead: int) -> list[Places]:
    """The grams of each length at all places of consecutive blocks `ids` [k, 32] but those of the first `lead` blocks,
    which are only looked back at. Places ascend and are counted from the first block behind the lead."""
    reach, skipped = reach_of(fill, documents), lead * BLOCK
    # What leads up to a place: the tokens that end at the slot before it, if they are of its document.
    led = np.zeros_like(reach)
    led[1:] = np.where(reach[1:] > 1, reach[:-1], 0)
    led[:skipped] = 0
    hashes = _spread(ids.ravel())
    found, factor = [], _FACTOR
    for number, length in enumerate(LENGTHS):
        if number:
            half = LENGTHS[number - 1]
            longer = hashes.copy()
            longer[half:] += hashes[:-half] * np.uint64(factor)
            hashes, factor = longer, factor * factor % _WORD
        at = np.flatnonzero(led >= length)
        found.append(Places(_names(hashes[at - 1], number), (at - skipped).astype(np.uint32)))
    return found


def names_of(query: I64) -> U32:
    """The names of the last 1, 2, 4 … of the `query` [q] tokens, uint32: one for each length that it has."""
    tail = query[-LENGTHS[-1] :].astype(np.uint32)
    hashes, factor, names = _spread(tail), _FACTOR, []
    for number, length in enumerate(LENGTHS):
        if length > len(tail):
            break
        if number:
            half = LENGTHS[number - 1]
            hashes = np.concatenate([hashes[:half], hashes[half:] + hashes[:-half] * np.uint64(factor)])
            factor = factor * factor % _WORD
        names.append(_names(hashes[-1:], number))
    return np.concatenate(names) if names else np.zeros(0, np.uint32)


def _spread(ids: U32) -> U64:
    """Token ids as 64 bits without a pattern (the finaliser of splitmix64: Steele, Lea and Flood 2014)."""
    x = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_FACTOR)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: U64 = x ^ (x >> np.uint64(31))
    return mixed


def _names(hashes: U64, number: int) -> U32:
    """The 32 bits that name grams of one length."""
    x = (hashes ^ np.uint64(_SEEDS[number])) * np.uint64(_SEEDS[0])
    names: U32 = ((x ^ (x >> np.uint64(29))) * np.uint64(_FACTOR) >> np.uint64(32)).astype(np.uint32)
    return names
