"""Deterministic content for storage tests: documents, their blocks, and gists that depend on their children."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.storage import BranchWriter, LayerSpec, Repository, Snapshot

SPEC = LayerSpec(fingerprint="gistnet-a", vectors=1, width=4)
OTHER = LayerSpec(fingerprint="gistnet-b", vectors=2, width=3)


def ids_of(source: str, blocks: int) -> np.ndarray:
    """The token ids of a document of this name, uint32 [blocks, 32]."""
    seed = int.from_bytes(source.encode().ljust(8, b"\0")[:8], "little") + blocks
    return np.random.default_rng(seed).integers(0, 50_000, (blocks, BLOCK), dtype=np.uint32)


class Gister:
    """Makes gists level by level, as an engine would: each from its 32 children, each level as it completes.

    It keeps all gists of all levels, so it is also the perfect model of a layer.
    """

    def __init__(self, spec: LayerSpec = SPEC) -> None:
        self.spec = spec
        self.lods: dict[int, np.ndarray] = {}

    def copy(self) -> Gister:
        other = Gister(self.spec)
        other.lods = dict(self.lods)
        return other

    def add(self, ids: np.ndarray, fill: np.ndarray | None = None) -> dict[int, tuple[int, np.ndarray]]:
        """The gists that these blocks complete, in the form that a writer takes."""
        mean = ids.astype(np.float64) @ np.linspace(1e-6, 2e-6, BLOCK)
        new = (mean[:, None, None] + np.arange(np.prod(self.spec.shape)).reshape(self.spec.shape)).astype(np.float16)
        out: dict[int, tuple[int, np.ndarray]] = {}
        lod = 1
        while True:
            old = self.lods.get(lod, np.empty((0, *self.spec.shape), np.float16))
            if len(new):
                out[lod] = (len(old), new)
            self.lods[lod] = np.concatenate((old, new))
            above = len(self.lods.get(lod + 1, ()))
            whole = len(self.lods[lod]) // BLOCK
            if whole == 0:
                return out
            family = self.lods[lod][above * BLOCK : whole * BLOCK].astype(np.float32)
            new = (family.reshape(whole - above, BLOCK, *self.spec.shape).mean(1) * 1.01).astype(np.float16)
            lod += 1


def create(path: Path, **options: object) -> Repository:
    """A memory with small segments and a fixed time."""
    return Repository.create(path, created=1.0, **{"segment_blocks": 32, **options})  # type: ignore[arg-type]


def add(
    writer: BranchWriter, source: str, blocks: int, gister: Gister | None = None, *, cut: int = 1 << 30, last: int = BLOCK
) -> None:
    """Writes a whole document in appends of `cut` blocks; its last block holds `last` tokens."""
    ids = ids_of(source, blocks)
    fill = np.full(blocks, BLOCK, np.uint8)
    fill[-1:] = last
    writer.begin_document(source=source, text_hash=f"hash of {source}", ingested_at=2.0, tags=("t",))
    for at in range(0, blocks, cut):
        part = slice(at, min(at + cut, blocks))
        gists = gister.add(ids[part], fill[part]) if gister else None
        lines = np.arange(part.start, part.stop) + 1
        writer.append_blocks(ids[part], fill[part], gists=gists, chars=lines * 100, lines=lines)
    writer.end_document(chars=blocks * 100, lines=blocks)
    writer.sync()


def say(writer: BranchWriter, ids: np.ndarray, gister: Gister | None = None) -> None:
    """Appends tokens to the open document."""
    joined = np.concatenate((writer.open_ids, ids))
    whole = len(joined) // BLOCK
    blocks = joined[: whole * BLOCK].reshape(whole, BLOCK)
    writer.append_tokens(ids, gists=gister.add(blocks) if gister and whole else None)
    writer.sync()


def check_layer(snapshot: Snapshot, gister: Gister) -> None:
    """Every gist of every level, by range and by index, equals the model's."""
    layer = snapshot.layer(gister.spec.fingerprint)
    lod = 1
    while layer.count(lod):
        count = layer.count(lod)
        np.testing.assert_array_equal(layer.gists(lod, 0, count), gister.lods[lod][:count])
        index = np.random.default_rng(0).permutation(count)[:300]
        np.testing.assert_array_equal(layer.gists_at(lod, index), gister.lods[lod][index])
        lod += 1
    assert lod > 1


def roots(repository: Repository, reference: str | None = None) -> tuple[object, ...]:
    """Everything in a commit that depends on the content: token root, provenance, layers."""
    commit = repository.commit(reference)
    return commit.tokens, commit.documents, dict(commit.layers)
