"""What a memory holds, as plain values: to compare two memories that were made in different ways."""

from __future__ import annotations

from typing import Any

import numpy as np

from megacontext.storage import Snapshot
from megacontext.storage.hashing import digest


def content_of(snapshot: Snapshot) -> dict[str, Any]:
    """Everything that was put in, and nothing of the clock: token root, documents, where blocks start, and the gists of
    every layer and level. Equal contents mean equal memories, bit for bit."""
    everything = np.arange(snapshot.blocks)
    gists: dict[str, str] = {}
    for fingerprint in sorted(snapshot.layers):
        layer, lod = snapshot.layer(fingerprint), 1
        while count := layer.count(lod):
            gists[f"{fingerprint} {lod}"] = digest(layer.gists(lod, 0, count).tobytes())
            lod += 1
    documents = [{**record.to_json(), "ingested_at": 0.0} for record in snapshot.documents]
    return {
        "tokens": digest(snapshot.tokens(0, snapshot.blocks).tobytes()),
        "fill": digest(snapshot.fill(0, snapshot.blocks).tobytes()),
        "root": snapshot.commit.tokens,
        "layers": dict(snapshot.commit.layers),
        "gists": gists,
        "spans": [digest(part.tobytes()) for part in snapshot.spans_at(everything)],
        "documents": documents,
        "blocks": snapshot.blocks,
        "open": snapshot.open_ids.tolist(),
    }
