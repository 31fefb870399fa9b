"""Segments and tail pages: the immutable objects that hold the blocks of a timeline.

A segment is one whole node (LOD3 by default: 1,024 blocks, 32,768 tokens). What is behind the last full
segment lies in pages of at most 32 blocks, of the same form, until it is sealed into a segment. Beside the
token objects, which alone give a memory its identity, lie *span* objects of the same cut: where in its
document's text each block starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from megacontext.core.node import BLOCK
from megacontext.storage.hashing import Json, canonical, natural
from megacontext.storage.merkle import MerkleList
from megacontext.storage.tensors import U8, U32, encode

TOKENS = "tokens"
SPANS = "spans"
SEGMENT_BLOCKS = 1024
PAGE_BLOCKS = 32
# In `chars` and `lines`: not known.
UNKNOWN = 0xFFFFFFFF


def token_object(ids: U32, doc: U32, fill: U8) -> bytes:
    """`ids` uint32 [n, 32]; `doc` uint32 [n], ordinal of the block's document; `fill` uint8 [n], its real
    tokens: 32 but for the last block of a document."""
    return encode({"ids": ids, "doc": doc, "fill": fill}, {"kind": TOKENS})


def span_object(chars: U32, lines: U32) -> bytes:
    """`chars` and `lines` uint32 [n]: character (from 0) and line (from 1) at which the block starts in its
    document, or UNKNOWN."""
    return encode({"chars": chars, "lines": lines}, {"kind": SPANS})


@dataclass(frozen=True)
class Strand:
    """A sequence of blocks as stored: full segments in a Merkle list, then the names of its tail pages."""

    segments: MerkleList = field(default_factory=MerkleList)
    pages: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """The strand as part of a JSON object."""
        return {
            "root": self.segments.root,
            "segments": self.segments.count,
            "pages": list(self.pages),
        }

    @classmethod
    def from_json(cls, value: Json) -> Strand:
        """The inverse of `to_json`."""
        return cls(MerkleList(value["root"], natural(value["segments"])), tuple(value["pages"]))


@dataclass(frozen=True, kw_only=True)
class TokenTree:
    """The object whose name is a memory's *token root*: it depends on tokens and document layout only.

    `blocks` complete blocks, then `open_tokens` tokens in an unfinished one (the last row of the last page).
    """

    strand: Strand = field(default_factory=Strand)
    blocks: int = 0
    open_tokens: int = 0

    KIND = "token-tree"

    @property
    def tokens(self) -> int:
        """Length of the timeline in tokens, filling included."""
        return self.blocks * BLOCK + self.open_tokens

    def to_bytes(self) -> bytes:
        """The object's content."""
        return canonical(
            {
                "kind": self.KIND,
                "blocks": self.blocks,
                "open_tokens": self.open_tokens,
                **self.strand.to_json(),
            }
        )

    @classmethod
    def from_json(cls, value: Json) -> TokenTree:
        """The inverse of `to_bytes`, after parsing."""
        return cls(
            strand=Strand.from_json(value),
            blocks=natural(value["blocks"]),
            open_tokens=natural(value["open_tokens"]),
        )
