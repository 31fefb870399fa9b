"""Commits: one immutable JSON object that names a whole memory at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from megacontext.storage.documents import DocumentTree
from megacontext.storage.gists import GistTree
from megacontext.storage.hashing import Json, canonical
from megacontext.storage.objects import ObjectReader
from megacontext.storage.segment import TokenTree

KIND = "commit"


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
        """The inverse of `to_bytes`, after parsing."""
        value = {"dead": "", "labels": "", **value}  # format 1 had no dead blocks and no labels
        known = {name: value[name] for name in cls.__dataclass_fields__}
        return cls(**{**known, "parents": tuple(value["parents"])})


def load_commit(reader: ObjectReader, name: str) -> Commit:
    """The commit `name`; raises MissingObject, CorruptObject."""
    return Commit.from_json(reader.json(name, KIND))


def load_tokens(reader: ObjectReader, commit: Commit) -> TokenTree:
    """The commit's token tree."""
    return TokenTree.from_json(reader.json(commit.tokens, TokenTree.KIND))


def load_documents(reader: ObjectReader, commit: Commit) -> DocumentTree:
    """The commit's provenance."""
    return DocumentTree.from_json(reader.json(commit.documents, DocumentTree.KIND))


def load_layer(reader: ObjectReader, root: str) -> GistTree:
    """The gist layer with this root."""
    return GistTree.from_json(reader.json(root, GistTree.KIND))
