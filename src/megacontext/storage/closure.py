"""Closures: every object that commits name, directly or through others. What is sent, archived or kept is one.

Only objects that name others are read, and each once: segments, pages, gists and originals, which are nearly all bytes, are
named without being looked at. `walk` checks what they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from megacontext.errors import CorruptObject, StorageError
from megacontext.storage import commit as commits
from megacontext.storage import merkle
from megacontext.storage.commit import load_commit, load_layer
from megacontext.storage.dead import DEAD
from megacontext.storage.documents import RECORDS, DocumentTree, load_page
from megacontext.storage.gists import GISTS, GistTree
from megacontext.storage.labels import KIND as LABELS
from megacontext.storage.labels import load_labels
from megacontext.storage.objects import ObjectReader
from megacontext.storage.segment import SPANS, TOKENS, Strand, TokenTree

ORIGINAL = "original"


class Named(NamedTuple):
    """An object that another one names: what `kind` it has to be; for an inner node of a list also how many levels of
    nodes it has below itself, itself included, and of what kind the list's `items` are."""

    name: str
    kind: str
    level: int = 0
    items: str = ""


class Closure:
    """Objects that were reached so far. It grows with every call, so that what several commits share is reached once.

    `history` False stops at the commits given: their parents are not named.
    """

    def __init__(self, reader: ObjectReader, *, history: bool = True) -> None:
        self.names: set[str] = set()
        self._reader = reader
        self._history = history
        # Of what names others. By all that is known of it: the bytes of an `original` may be those of a commit.
        self._opened: set[Named] = set()

    def of(self, names: Iterable[str]) -> Iterator[Named]:
        """What these commits name and was not reached before, each object after what names it, the commits first.

        Raises MissingObject or CorruptObject where one that names others cannot be read.
        """
        yield from self.below(Named(name, commits.KIND) for name in names)

    def below(self, roots: Iterable[Named]) -> Iterator[Named]:
        """The same for objects of any kind."""
        for root in roots:
            todo = [root]
            while todo:
                named = todo.pop()
                if named.name not in self.names:
                    self.names.add(named.name)
                    yield named
                if named.kind not in _NAMES_OTHERS or named in self._opened:
                    continue
                self._opened.add(named)
                below = list(references(self._reader, named))
                if not self._history:
                    below = [each for each in below if each.kind != commits.KIND]
                todo.extend(reversed(below))


_NAMES_OTHERS = {commits.KIND, TokenTree.KIND, DocumentTree.KIND, GistTree.KIND, merkle.KIND, RECORDS, LABELS}
# Whoever adds one says below whether it names an object.
COMMIT_FIELDS = frozenset(
    {"kind", "tokens", "documents", "dead", "labels", "layers", "blocks", "open_tokens", "document_count", "parents"}
    | {"author", "time", "message"}
)


def references(reader: ObjectReader, named: Named) -> Iterator[Named]:
    """What an object names itself. Raises MissingObject, CorruptObject."""
    try:
        yield from _references(reader, named)
    except StorageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptObject(f"object {named.name} is no well formed {named.kind} ({error!r})") from error


def _references(reader: ObjectReader, named: Named) -> Iterator[Named]:
    name, kind, level, items = named
    if kind == commits.KIND:
        if unknown := set(reader.json(name, kind)) - COMMIT_FIELDS:
            # It may name objects there; whoever does not know would leave them behind, or remove them.
            raise CorruptObject(f"commit {name} says more than this version knows ({sorted(unknown)[0]}): upgrade megacontext")
        commit = load_commit(reader, name)
        yield Named(commit.tokens, TokenTree.KIND)
        yield Named(commit.documents, DocumentTree.KIND)
        yield from _optional(commit.dead, DEAD)
        yield from _optional(commit.labels, LABELS)
        yield from (Named(root, GistTree.KIND) for root in commit.layers.values())
        yield from (Named(parent, kind) for parent in commit.parents)
    elif kind == TokenTree.KIND:
        yield from _strand(TokenTree.from_json(reader.json(name, kind)).strand, TOKENS)
    elif kind == GistTree.KIND:
        layer = load_layer(reader, name)
        yield from _optional(layer.dead, DEAD)
        yield from _strand(layer.strand, GISTS)
    elif kind == DocumentTree.KIND:
        documents = DocumentTree.from_json(reader.json(name, kind))
        yield from _strand(documents.records, RECORDS)
        yield from _strand(documents.spans, SPANS)
    elif kind == merkle.KIND:
        node = reader.tensors(name, kind)
        for slot in range(len(node.arrays["children"])):
            yield (
                Named(merkle.child(node, slot), items)
                if level == 1
                else Named(merkle.child(node, slot), kind, level - 1, items)
            )
    elif kind == LABELS:
        yield from _optional(load_labels(reader, name).before, kind)
    elif kind == RECORDS:
        yield from (Named(record.original, ORIGINAL) for record in load_page(reader, name) if record.original)


def _optional(name: str, kind: str) -> Iterator[Named]:
    if name:
        yield Named(name, kind)


def _strand(strand: Strand, kind: str) -> Iterator[Named]:
    if strand.segments.count:
        yield Named(strand.segments.root, merkle.KIND, strand.segments.depth, kind)
    yield from (Named(page, kind) for page in strand.pages)
