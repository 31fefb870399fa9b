"""Commits: one immutable JSON object that names a whole memory at one moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from megacontext.errors import CorruptObject
from megacontext.storage.documents import DocumentTree
from megacontext.storage.gists import GistTree
from megacontext.storage.hashing import Json, canonical, natural
from megacontext.storage.objects import ObjectReader
from megacontext.storage.segment import TokenTree

KIND = "commit"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Commit:
    """`tokens` is the token root, which alone says what the memory holds; `layers` maps a GistNet's
    fingerprint to its layer's root; `documents` names the provenance, `dead` the blocks that are
    superseded or removed, `labels` who carries which policy label ('' for none). `time` is in seconds since 1970."""

    tokens: str
    documents: str
    layers: Mapping[str, str] = field(default_factory=dict)
    blocks: int = 0
    open_tokens: int = 0
    document_count: int = 0
    dead: str = ""
    labels: str = ""
    parents: tuple[str, ...] = ()
    author: str = ""
    time: float = 0.0
    message: str = ""

    @property
    def content(self) -> tuple[object, ...]:
        """What the memory holds, whoever made it when and out of what."""
        return self.tokens, self.documents, self.dead, self.labels, dict(self.layers)

    def to_bytes(self) -> bytes:
        """The object's content."""
        value: Json = {
            "kind": KIND,
            "tokens": self.tokens,
            "documents": self.documents,
            "layers": dict(self.layers),
            "blocks": self.blocks,
            "open_tokens": self.open_tokens,
            "document_count": self.document_count,
            "dead": self.dead,
            "labels": self.labels,
            "parents": list(self.parents),
            "author": self.author,
            "time": self.time,
            "message": self.message,
        }
        return canonical(value)

    @classmethod
    def from_json(cls, value: Json) -> Commit:
        """The inverse of `to_bytes`, after parsing; raises KeyError, TypeError, ValueError, AttributeError for others."""
        value = {"dead": "", "labels": "", **value}  # format 1 had no dead blocks and no labels
        names = [value[name] for name in ("tokens", "documents", "dead", "labels")]
        if not all(isinstance(name, str) for name in (*names, *value["layers"].values(), *value["parents"])):
            raise ValueError("it names objects by something else than their names")
        for count in ("blocks", "open_tokens", "document_count"):
            natural(value[count])
        known = {name: value[name] for name in cls.__dataclass_fields__}
        return cls(**{**known, "parents": tuple(value["parents"])})


def load_commit(reader: ObjectReader, name: str) -> Commit:
    """The commit `name`; raises MissingObject, CorruptObject."""
    return _formed(reader, name, KIND, Commit.from_json)


def load_tokens(reader: ObjectReader, commit: Commit) -> TokenTree:
    """The commit's token tree."""
    return _formed(reader, commit.tokens, TokenTree.KIND, TokenTree.from_json)


def load_documents(reader: ObjectReader, commit: Commit) -> DocumentTree:
    """The commit's provenance."""
    return _formed(reader, commit.documents, DocumentTree.KIND, DocumentTree.from_json)


def load_layer(reader: ObjectReader, root: str) -> GistTree:
    """The gist layer with this root."""
    return _formed(reader, root, GistTree.KIND, GistTree.from_json)


def _formed(reader: ObjectReader, name: str, kind: str, parse: Callable[[Json], T]) -> T:
    value = reader.json(name, kind)
    try:
        return parse(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # Whole, by its name, and yet no such thing: made by somebody else.
        raise CorruptObject(f"object {name} is no well formed {kind} ({error!r:.99})") from error
