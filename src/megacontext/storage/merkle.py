"""An append-only list of object names as a 32-ary Merkle tree: append, get and compare in O(log n).

Inner nodes hold up to 32 child names; a node may also hold a *row* for each of its full children (in gist
layers: the child's gist). The depth is the smallest d with 32^d > count, so a full node always has a
parent, in which its row has a place. A list's root depends on its items only, not on how they came in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.errors import UnknownReference
from megacontext.storage.hashing import NAME_BYTES
from megacontext.storage.objects import ObjectReader, ObjectStore, TensorObject
from megacontext.storage.tensors import F16, Array, encode

ARITY = BLOCK
KIND = "inner"


class RowSource(NamedTuple):
    """Where an appending list finds its rows: `at(level, index)` is the float16 row, of `shape`, of a full
    node (level 0: the items themselves)."""

    shape: tuple[int, ...]
    at: Callable[[int, int], F16]


@dataclass(frozen=True)
class MerkleList:
    """A list by its root object and length. The empty list has no root object: its root is ''."""

    root: str = ""
    count: int = 0

    @property
    def depth(self) -> int:
        """Levels of inner nodes."""
        depth = 1
        while ARITY**depth <= self.count:
            depth += 1
        return depth


def node_at(reader: ObjectReader, items: MerkleList, level: int, index: int) -> TensorObject:
    """Inner node `index` of `level` (1 = parents of items): `children` uint8 [k, 32], maybe `gists` [c, g, d].

    Raises UnknownReference outside the list, CorruptObject or MissingObject for damage.
    """
    if not 1 <= level <= items.depth or not 0 <= index * ARITY**level < items.count:
        raise UnknownReference(f"no inner node {index} at level {level} in a list of {items.count}")
    node = reader.tensors(items.root, KIND)
    for above in range(items.depth, level, -1):
        slot = index // ARITY ** (above - 1 - level) % ARITY
        node = reader.tensors(child(node, slot), KIND)
    return node


def child(node: TensorObject, slot: int) -> str:
    """The name of a node's child."""
    name: str = node.arrays["children"][slot].tobytes().hex()
    return name


def get(reader: ObjectReader, items: MerkleList, index: int) -> str:
    """Item `index`."""
    if not 0 <= index < items.count:
        raise UnknownReference(f"no item {index} in a list of {items.count}")
    return child(node_at(reader, items, 1, index // ARITY), index % ARITY)


def iterate(reader: ObjectReader, items: MerkleList) -> Iterator[str]:
    """All items in order."""
    for index in range(-(-items.count // ARITY)):
        node = node_at(reader, items, 1, index)
        yield from (child(node, slot) for slot in range(len(node.arrays["children"])))


def append(
    reader: ObjectReader,
    store: ObjectStore,
    items: MerkleList,
    new: Iterable[str],
    row: RowSource | None = None,
) -> MerkleList:
    """The list with `new` items behind it; its new nodes are staged in `store`. O(log n) for each item."""
    spine = _Spine(reader, store, items, row)
    for name in new:
        spine.append(name)
    return spine.flush() if spine.count != items.count else items


def prefix(reader: ObjectReader, store: ObjectStore, items: MerkleList, count: int) -> MerkleList:
    """The first `count` items as a list of their own, with the rows of its full nodes; the nodes on its right edge are staged
    in `store`. O(log n)."""
    if count > items.count:
        raise UnknownReference(f"no first {count} items in a list of {items.count}")
    if count in (0, items.count):
        return items if count else MerkleList()
    kept, partial = MerkleList(items.root, count), ""
    for level in range(1, kept.depth + 1):
        full = count // ARITY ** (level - 1) % ARITY
        if not full and not partial:
            continue
        node = node_at(reader, items, level, count // ARITY**level)
        names = [child(node, slot) for slot in range(full)] + ([partial] if partial else [])
        raw = np.frombuffer(bytes.fromhex("".join(names)), np.uint8)
        arrays: dict[str, Array] = {"children": raw.reshape(len(names), NAME_BYTES)}
        if "gists" in node.arrays:
            arrays["gists"] = node.arrays["gists"][:full]
        partial = store.put(encode(arrays, {"kind": KIND}))
    return MerkleList(partial, count)


def rewrite(
    reader: ObjectReader,
    store: ObjectStore,
    items: MerkleList,
    names: Mapping[int, str],
    rows: Mapping[tuple[int, int], F16] | None = None,
) -> MerkleList:
    """The list with other `names` of items by index, and other `rows` of full nodes by (level, index); the nodes on the
    paths to them are staged in `store`. O(log n) for each change."""
    rows = rows or {}
    renamed: dict[int, str] = dict(names)
    for level in range(1, items.depth + 1):
        replaced = {index: row for (of, index), row in rows.items() if of == level - 1}
        changed: dict[int, str] = {}
        for number in sorted({index // ARITY for index in (*renamed, *replaced)}):
            node = node_at(reader, items, level, number)
            children = node.arrays["children"].copy()
            arrays: dict[str, Array] = {**node.arrays, "children": children}
            if replaced:
                arrays["gists"] = node.arrays["gists"].copy()
            for slot in range(len(children)):
                index = number * ARITY + slot
                if index in renamed:
                    children[slot] = np.frombuffer(bytes.fromhex(renamed[index]), np.uint8)
                if index in replaced:
                    arrays["gists"][slot] = replaced[index]
            changed[number] = store.put(encode(arrays, {"kind": KIND}))
        renamed = changed
    return MerkleList(renamed.get(0, items.root), items.count)


def differing(reader: ObjectReader, left: MerkleList, right: MerkleList) -> Iterator[int]:
    """Indices at which two lists differ, ascending; equal subtrees are skipped without being read."""
    level = max(left.depth, right.depth)
    yield from _differing(reader, level, 0, _raised(reader, left, level), _raised(reader, right, level))


class _Spine:
    """The right edge of a list while it grows: for each level, the full children of its unfinished node."""

    def __init__(self, reader: ObjectReader, store: ObjectStore, items: MerkleList, row: RowSource | None) -> None:
        self._store = store
        self._row = row
        self.count = items.count
        self._names: list[list[str]] = [[] for _ in range(items.depth)]
        self._rows: list[list[F16]] = [[] for _ in range(items.depth)]
        name = items.root
        for level in range(items.depth, 0, -1):
            if not name:
                break
            node = reader.tensors(name, KIND)
            full = items.count // ARITY ** (level - 1) % ARITY
            self._names[level - 1] = [child(node, slot) for slot in range(full)]
            self._rows[level - 1] = list(node.arrays["gists"]) if row else []
            name = child(node, full) if len(node.arrays["children"]) > full else ""

    def append(self, name: str) -> None:
        index, level = self.count, 0
        self.count += 1
        while True:
            if level == len(self._names):
                self._names.append([])
                self._rows.append([])
            names, rows = self._names[level], self._rows[level]
            names.append(name)
            if self._row:
                rows.append(self._row.at(level, index))
            if len(names) < ARITY:
                return
            name = self._write(names, rows)
            names.clear()
            rows.clear()
            index, level = index // ARITY, level + 1

    def flush(self) -> MerkleList:
        partial: list[str] = []
        for names, rows in zip(self._names, self._rows, strict=True):
            children = names + partial
            partial = [self._write(children, rows)] if children else []
        return MerkleList(partial[0], self.count)

    def _write(self, names: list[str], rows: list[F16]) -> str:
        raw = np.frombuffer(bytes.fromhex("".join(names)), np.uint8)
        arrays: dict[str, Array] = {"children": raw.reshape(len(names), NAME_BYTES)}
        if self._row:
            arrays["gists"] = np.asarray(rows, np.float16).reshape(len(rows), *self._row.shape)
        return self._store.put(encode(arrays, {"kind": KIND}))


# Names of the children of one node: a plain list, so that levels above a short list's root can be made up.
_Children = list[str]


def _children(reader: ObjectReader, name: str) -> _Children:
    node = reader.tensors(name, KIND)
    return [child(node, slot) for slot in range(len(node.arrays["children"]))]


def _raised(reader: ObjectReader, items: MerkleList, level: int) -> tuple[_Children, int]:
    """The list's node 0 of `level`, which may lie above its root: its children and their true level."""
    if not items.root:
        return [], level
    if level > items.depth:
        return [items.root], items.depth
    return _children(reader, items.root), level - 1


def _differing(
    reader: ObjectReader,
    level: int,
    index: int,
    left: tuple[_Children, int],
    right: tuple[_Children, int],
) -> Iterator[int]:
    """Compares two nodes of one level slot by slot, and descends where the names differ."""
    below = level - 1
    for slot in range(max(len(left[0]), len(right[0]))):
        a, b = (side[0][slot] if slot < len(side[0]) else "" for side in (left, right))
        if a == b and left[1] == right[1]:
            continue
        at = index * ARITY + slot
        if below == 0:
            yield at
            continue
        sides = [_opened(reader, name, side[1], below) for name, side in ((a, left), (b, right))]
        yield from _differing(reader, below, at, sides[0], sides[1])


def _opened(reader: ObjectReader, name: str, true: int, level: int) -> tuple[_Children, int]:
    if not name:
        return [], level - 1
    if true < level:
        return [name], true
    return _children(reader, name), level - 1
