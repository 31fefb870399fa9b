"""Gist layers: the vectors that one GistNet made for the nodes of a timeline.

A layer lies over the token tree and is cut like it: per segment an object with the levels inside it (`lod1`
[n, g, d], `lod2` [n/32, g, d] …), and the gists of segments and of everything above in the inner nodes of
the layer's own Merkle list, beside the child they belong to. So any gist of any level is found in O(log n).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from megacontext.errors import InvalidInput
from megacontext.storage.column import Column, Rows
from megacontext.storage.guard import Guard, GuardedColumn
from megacontext.storage.hashing import Json, canonical, natural
from megacontext.storage.merkle import ARITY, RowSource, get, node_at
from megacontext.storage.objects import ObjectReader
from megacontext.storage.patches import Overlay
from megacontext.storage.segment import Strand
from megacontext.storage.tensors import F16, I64, Array, encode

GISTS = "gists"
NOTHING = Overlay()
# What a writer hands over: for each level, the index of the first new node and float16 [m, g, d].
NewGists = Mapping[int, tuple[int, F16]]


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """Whose gists a layer holds: the GistNet's `fingerprint`, `vectors` per node (g) and their `width` (d)."""

    fingerprint: str
    vectors: int
    width: int

    def __post_init__(self) -> None:
        if not self.fingerprint or self.vectors < 1 or self.width < 1:
            raise InvalidInput(f"a gist layer needs a fingerprint and positive sizes: {self}")

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of one node's gist."""
        return self.vectors, self.width


@dataclass(frozen=True, kw_only=True)
class GistTree:
    """The root object of a layer. It covers the first `blocks` complete blocks: a layer that was not written
    along lags behind the tokens until `add_layer` extends it. Its gists are made without the blocks in the object `dead`, which
    is the commit's unless the layer lags behind."""

    spec: LayerSpec
    strand: Strand = field(default_factory=Strand)
    blocks: int = 0
    dead: str = ""

    KIND = "gist-tree"

    def to_bytes(self) -> bytes:
        """The object's content."""
        return canonical(
            {
                "kind": self.KIND,
                "fingerprint": self.spec.fingerprint,
                "vectors": self.spec.vectors,
                "width": self.spec.width,
                "blocks": self.blocks,
                "dead": self.dead,
                **self.strand.to_json(),
            }
        )

    @classmethod
    def from_json(cls, value: Json) -> GistTree:
        """The inverse of `to_bytes`, after parsing."""
        spec = LayerSpec(fingerprint=value["fingerprint"], vectors=value["vectors"], width=value["width"])
        return cls(spec=spec, strand=Strand.from_json(value), blocks=natural(value["blocks"]), dead=value.get("dead", ""))


def nodes(blocks: int, lod: int) -> int:
    """How many complete nodes of a level lie over `blocks` complete blocks."""
    return int(blocks // ARITY ** (lod - 1))


def inner_levels(segment_blocks: int) -> int:
    """How many levels of gists lie inside a segment (2 for 1,024 blocks): its own gist is one level higher."""
    levels = 0
    while ARITY**levels < segment_blocks:
        levels += 1
    return levels


def gist_object(spec: LayerSpec, tokens: str, lods: Mapping[int, Array], dead: str = "") -> bytes:
    """A segment's or page's gists, keyed by the token object they belong to ('' for a page), its dead mask
    ('' when nothing in it is dead) and the GistNet."""
    arrays = {f"lod{lod}": rows for lod, rows in lods.items()}
    metadata = {"kind": GISTS, "gistnet": spec.fingerprint, "tokens": tokens, "dead": dead}
    return encode(arrays, metadata)


class GistRows:
    """The gists behind the last sealed segment, for each level, in memory. Levels are never capped."""

    def __init__(self, spec: LayerSpec, first_block: int) -> None:
        self.spec = spec
        self.first_block = first_block
        self.blocks = first_block
        self._lods: dict[int, Rows] = {}

    def first(self, lod: int) -> int:
        """Index of the first node of a level that is here and not sealed."""
        return nodes(self.first_block, lod)

    def rows(self, lod: int) -> F16:
        """The gists of a level, [n, g, d], from `first(lod)` on."""
        if lod not in self._lods:
            self._lods[lod] = Rows(self.spec.shape, np.float16)
        return self._lods[lod].view(0, nodes(self.blocks, lod) - self.first(lod))

    def check(self, new_blocks: int, gists: NewGists | None) -> dict[int, F16]:
        """The gists of exactly the nodes that `new_blocks` more blocks complete, or InvalidInput."""
        gists = gists or {}
        checked: dict[int, F16] = {}
        lod = 1
        while nodes(self.blocks + new_blocks, lod):
            start = nodes(self.blocks, lod)
            count = nodes(self.blocks + new_blocks, lod) - start
            given_start, given = gists.get(lod, (start, np.empty((0, *self.spec.shape), np.float16)))
            expected = (count, *self.spec.shape)
            if given_start != start or given.shape != expected or given.dtype != np.float16:
                raise InvalidInput(
                    f"level {lod} needs gists of nodes {start}:{start + count} as float16 {expected}, "
                    f"not from {given_start} as {given.dtype} {given.shape}"
                )
            if count:
                checked[lod] = np.ascontiguousarray(given)
                if not _finite(checked[lod]):
                    raise InvalidInput(f"gists of level {lod} from {start} hold NaN or infinity")
            lod += 1
        if extra := sorted(set(gists) - set(range(1, lod))):
            raise InvalidInput(f"no node of level {extra[0]} is complete yet")
        return checked

    def append(self, new_blocks: int, gists: Mapping[int, Array]) -> None:
        """Adds checked gists."""
        for lod, rows in gists.items():
            self.rows(lod)
            self._lods[lod].append(rows)
        self.blocks += new_blocks

    def truncate(self, blocks: int) -> None:
        """Forgets the gists of everything that `blocks` blocks do not complete."""
        self.blocks = blocks
        for lod, rows in self._lods.items():
            rows.truncate(nodes(blocks, lod) - self.first(lod))

    def after(self, block: int, overlay: Overlay = NOTHING) -> GistRows:
        """A copy without what lies before `block`, a segment's boundary, with the rows of `overlay` written into it."""
        rest = GistRows(self.spec, block)
        rest.blocks = self.blocks
        for lod, rows in self._lods.items():
            first = rest.first(lod)
            kept = rows.view(first - self.first(lod))
            rest._lods[lod] = Rows(self.spec.shape, np.float16)
            rest._lods[lod].append(overlay.on_range(lod, first, first + len(kept), kept))
        return rest

    def source(self, inner: int, overlay: Overlay = NOTHING) -> RowSource:
        """These gists as rows for the inner nodes of a layer whose segments hold `inner` levels."""

        def at(level: int, index: int) -> F16:
            lod = inner + 1 + level
            new = overlay.row(lod, index)
            row: F16 = self.rows(lod)[index - self.first(lod)] if new is None else new
            return row

        return RowSource(self.spec.shape, at)


def _finite(gists: F16) -> bool:
    """All exponents below the all-ones pattern: several times faster than isfinite on float16."""
    return not bool(((gists.view(np.uint16) & 0x7C00) == 0x7C00).any())


def load_rows(reader: ObjectReader, tree: GistTree, segment_blocks: int) -> GistRows:
    """The unsealed gists of a stored layer."""
    inner = inner_levels(segment_blocks)
    rows = GistRows(tree.spec, tree.strand.segments.count * segment_blocks)
    for name in tree.strand.pages:
        arrays = reader.tensors(name, GISTS).arrays
        lods = {lod: arrays[f"lod{lod}"] for lod in range(1, inner + 1) if f"lod{lod}" in arrays}
        rows.append(len(arrays["lod1"]), lods)
    return rows


class Layer:
    """An immutable view of one gist layer of a snapshot; with a `guard`, gists that it denies raise AccessDenied.

    `blocks` is how many blocks it covers; `spec` whose gists it holds.
    """

    def __init__(
        self,
        reader: ObjectReader,
        segment_blocks: int,
        tree: GistTree,
        rows: GistRows,
        blocks: int,
        overlay: Overlay = NOTHING,
        guard: Guard | None = None,
    ) -> None:
        self._overlay = overlay
        self._guard = guard
        self.spec = tree.spec
        self.blocks = blocks
        self._reader = reader
        self._segments = tree.strand.segments
        self._segment_blocks = segment_blocks
        self._inner = inner_levels(segment_blocks)
        self._first_block = rows.first_block
        self._columns: dict[int, Column | GuardedColumn] = {}
        # Frozen here: the writer's rows go on growing.
        self._tails: dict[int, F16] = {}
        lod = 1
        while nodes(blocks, lod):
            self._tails[lod] = rows.rows(lod)[: nodes(blocks, lod) - rows.first(lod)]
            lod += 1

    def count(self, lod: int) -> int:
        """How many nodes of a level have a gist."""
        return nodes(self.blocks, lod) if lod >= 1 else 0

    def gists(self, lod: int, start: int, stop: int) -> F16:
        """Gists of nodes `start:stop` of a level, float16 [n, g, d]; raises UnknownReference outside."""
        return self._overlay.on_range(lod, start, stop, self._column(lod).range(start, stop))

    def gists_at(self, lod: int, index: I64) -> F16:
        """Gists of the nodes at int64 [k] indices of a level, float16 [k, g, d]."""
        return self._overlay.on(lod, np.asarray(index, np.int64), self._column(lod).at(index))

    def _column(self, lod: int) -> Column | GuardedColumn:
        if lod not in self._columns:
            column = self._new_column(lod)
            self._columns[lod] = column if self._guard is None else self._guard.column(column, lod)
        return self._columns[lod]

    def _new_column(self, lod: int) -> Column:
        empty: F16 = np.empty((0, *self.spec.shape), np.float16)
        tail = self._tails.get(lod, empty)
        name = f"gists of level {lod}"
        if lod < 1:
            return Column(name, lambda number: empty, 1, 0, empty)
        first = nodes(self._first_block, lod)
        if lod <= self._inner:
            return Column(
                name,
                lambda number: self._segment(number)[f"lod{lod}"],
                self._segment_blocks // ARITY ** (lod - 1),
                first,
                tail,
            )
        level = lod - self._inner
        return Column(name, lambda number: self._node(level, number)["gists"], ARITY, first, tail)

    def _segment(self, number: int) -> dict[str, Array]:
        return self._reader.tensors(get(self._reader, self._segments, number), GISTS).arrays

    def _node(self, level: int, number: int) -> dict[str, Array]:
        return node_at(self._reader, self._segments, level, number).arrays
