"""Writing a conversation, the one kind of document that grows by tokens: with the gists of the blocks that these complete."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megacontext.core import BLOCK, Timeline
from megacontext.engine.gist_builder import GistBuilder, NewGists, NoGists
from megacontext.storage import BranchWriter, DocumentRecord

U32 = NDArray[np.uint32]


def append_tokens(writer: BranchWriter, builder: GistBuilder | None, ids: U32, timeline: Timeline) -> int:
    """Adds ``ids`` [k] to the open document of ``writer``, whose timeline is given, in one record: after a crash all of them
    are there or none. Returns how many blocks they completed; acknowledge with ``sync``."""
    stream = np.concatenate([writer.open_ids, ids])
    whole = len(stream) // BLOCK
    gists = _gists(writer, builder, stream[: whole * BLOCK].reshape(whole, BLOCK), None, timeline)
    writer.append_tokens(ids, gists=gists)
    return whole


def end(writer: BranchWriter, builder: GistBuilder | None, text: str, text_hash: str, pad: int) -> DocumentRecord:
    """Ends the open document, whose ``text`` is that; its unfinished block is filled with ``pad``."""
    rest = len(writer.open_ids)
    block = np.full((1 if rest else 0, BLOCK), pad, np.uint32)
    block[:, :rest] = writer.open_ids
    fill = np.full(len(block), rest, np.uint8)
    gists = _gists(writer, builder, block, fill, writer.snapshot().timeline())
    lines = text.count("\n") + (not text.endswith("\n"))
    return writer.end_document(chars=len(text), lines=lines, text_hash=text_hash, pad=pad, gists=gists)


def _gists(
    writer: BranchWriter, builder: GistBuilder | None, blocks: U32, fill: NDArray[np.uint8] | None, timeline: Timeline
) -> NewGists | None:
    if builder is None or not len(blocks):
        return None
    stored = writer.written_layer() if writer.blocks else NoGists()
    return builder.extend(stored, blocks, fill, timeline=timeline)
