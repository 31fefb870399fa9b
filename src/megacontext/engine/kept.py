"""What key/value gists keep, in words: which tokens of which blocks, and what stood before each.

A gist of level 1 holds keys and values, not tokens; which they are of is found by choosing again, as when it was made. What
rises to a higher level is copied from a child, bit for bit, so it can be followed down to its block.

Shapes: N blocks, g vectors a node, R entries a vector, W numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from megacontext.core import BLOCK
from megacontext.engine.bundle import Bundle
from megacontext.models.kv_gistnet import KeyValueGistNet
from megacontext.storage import Layer, Snapshot

Node = tuple[int, int]
Decode = Callable[[list[int]], str]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A token that a gist keeps: its ``text``, that of the token ``before`` it ('' at a block's start), and the ``score`` by
    which it stayed (nats; higher stays longer). It is token ``place`` of ``block``, which stands at ``line`` of ``source``."""

    text: str
    before: str
    score: float
    block: int
    place: int
    source: str
    line: int

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


class _Entry(NamedTuple):
    """Entry ``rank`` of a block's gist, and its score in the node that was asked for."""

    block: int
    rank: int
    score: float


def kept_tokens(
    snapshot: Snapshot, bundle: Bundle, nodes: Sequence[Node], decode: Decode, limit: int | None = None
) -> list[list[Kept]]:
    """For each node (lod ≥ 1, index) the tokens that its gist keeps, best first, at most ``limit`` of them. Nothing for gists
    that are no keys and values, for pruned blocks, and for a snapshot without a layer of the bundle's GistNet."""
    net = bundle.gists
    if not isinstance(net, KeyValueGistNet) or net.fingerprint not in snapshot.layers or not nodes:
        return [[] for _ in nodes]
    gists = _Gists(snapshot, net)
    entries = [gists.best(lod, index, limit) for lod, index in nodes]
    blocks = np.unique(np.array([each.block for found in entries for each in found], np.int64))
    words = _Words(snapshot, bundle, net, blocks, decode)
    return [[kept for each in found if (kept := words.of(each)) is not None] for found in entries]


class _Gists:
    """Entries of stored gists, and where they came from."""

    def __init__(self, snapshot: Snapshot, net: KeyValueGistNet) -> None:
        self._layer: Layer = snapshot.layer(net.fingerprint)
        self._timeline = snapshot.timeline()
        self._layout, self._per_node = net.layout, net.vectors * net.layout.entries

    def best(self, lod: int, index: int, limit: int | None) -> list[_Entry]:
        """The entries of a node with the highest scores, those left out that cannot be told."""
        if index >= self._layer.count(lod):
            return []
        bodies, scores = self._entries(lod, index, index + 1)
        there = np.flatnonzero(bodies.any(axis=1))
        order = there[np.argsort(-scores[there], kind="stable")][:limit]
        origins = self._origins(lod, index, bodies, order)
        found = [_Entry(*origins[at], float(scores[at])) for at in order.tolist() if at in origins]
        return [entry for entry in found if not self._timeline.is_pruned(entry.block)]

    def _origins(self, lod: int, index: int, bodies: NDArray[np.uint16], wanted: NDArray[Any]) -> dict[int, tuple[int, int]]:
        """Of some entries of a node the block that each is of, and which entry of that block's gist it is."""
        if lod == 1:
            ranks = np.cumsum(bodies.any(axis=1)) - 1
            return {at: (index, int(ranks[at])) for at in wanted.tolist()}
        children, _ = self._entries(lod - 1, index * BLOCK, (index + 1) * BLOCK)
        lods = np.full(BLOCK, lod - 1, np.int8)
        absent = self._timeline.absent_mask(lods, np.arange(index * BLOCK, (index + 1) * BLOCK, dtype=np.int64))
        known: dict[bytes, int] = {}
        for place in np.flatnonzero(children.any(axis=1) & ~np.repeat(absent, self._per_node)).tolist():
            known.setdefault(children[place].tobytes(), place)
        families: dict[int, dict[int, int]] = {}
        for at in wanted.tolist():
            place = known.get(bodies[at].tobytes(), -1)
            if place >= 0:
                families.setdefault(place // self._per_node, {})[at] = place % self._per_node
        found: dict[int, tuple[int, int]] = {}
        for child, pairs in families.items():
            own = children[child * self._per_node : (child + 1) * self._per_node]
            below = self._origins(lod - 1, index * BLOCK + child, own, np.array(list(pairs.values())))
            found.update({at: below[place] for at, place in pairs.items() if place in below})
        return found

    def _entries(self, lod: int, start: int, stop: int) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        """Keys and values of the entries of nodes ``start:stop`` as their bits, uint16 [n·g·R, …], and scores [n·g·R]."""
        keys, values, scores = self._layout.unpack(torch.from_numpy(self._layer.gists(lod, start, stop).copy()))
        both = torch.stack([keys, values], dim=-1).flatten(0, 2).flatten(1).numpy()
        # Both zeros are nothing.
        return np.where(both == 0, np.float16(0), both).view(np.uint16), scores.flatten().float().numpy()


class _Words:
    """Tokens of some blocks, as text."""

    def __init__(
        self, snapshot: Snapshot, bundle: Bundle, net: KeyValueGistNet, blocks: NDArray[np.int64], decode: Decode
    ) -> None:
        self._snapshot, self._decode = snapshot, decode
        self._rows = {block: row for row, block in enumerate(blocks.tolist())}
        ids = snapshot.tokens_at(blocks).astype(np.int64)
        mask = np.arange(BLOCK) < snapshot.fill_at(blocks)[:, None]
        # The filling's ids mean nothing and need not even be in the vocabulary.
        self._ids = np.where(mask, ids, 0)
        self._kept = net.kept(bundle.base, torch.from_numpy(self._ids), torch.from_numpy(mask)).numpy()
        self._lines = snapshot.spans_at(blocks)[1].tolist()

    def of(self, entry: _Entry) -> Kept | None:
        """The token of an entry; None where the block's gist has no such entry."""
        row = self._rows[entry.block]
        places = np.flatnonzero(self._kept[row]).tolist()
        if entry.rank >= len(places):
            return None
        place, ids = places[entry.rank], self._ids[row].tolist()
        return Kept(
            text=self._decode([ids[place]]),
            before=self._decode([ids[place - 1]]) if place else "",
            score=entry.score,
            block=entry.block,
            place=place,
            source=self._snapshot.document_of(entry.block).source,
            line=self._lines[row],
        )
