"""What the processes of `test_concurrency` run. All content follows from its place, so that any reader can check any of it."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.errors import BranchLocked, InvalidInput
from megacontext.storage import BranchWriter, DocumentRecord, LayerSpec, Repository, Snapshot
from megacontext.storage.gists import nodes
from megacontext.storage.hashing import digest

SPEC = LayerSpec(fingerprint="places", vectors=1, width=2)


def ids_at(index: np.ndarray) -> np.ndarray:
    """Token ids of blocks, uint32 [k, 32]."""
    ids: np.ndarray = ((index[:, None] * 7919 + np.arange(BLOCK)) % 50_021).astype(np.uint32)
    return ids


def gists_at(lod: int, index: np.ndarray) -> np.ndarray:
    """Gists of nodes, float16 [k, 1, 2]."""
    gists: np.ndarray = np.stack([index % 2039, index * 0 + lod], axis=1).astype(np.float16)[:, None]
    return gists


def append(writer: BranchWriter, source: str, blocks: int, replaces: DocumentRecord | None) -> DocumentRecord:
    """A document, in place of another one if there is one; acknowledged."""
    first = writer.blocks
    new = {}
    for lod in range(1, 6):
        index = np.arange(nodes(first, lod), nodes(first + blocks, lod))
        if len(index):
            new[lod] = int(index[0]), gists_at(lod, index)
    writer.begin_document(source=source, text_hash=f"{source} at {first}")
    writer.append_blocks(ids_at(np.arange(first, first + blocks)), gists=new)
    record = writer.end_document(replaces=replaces)
    writer.sync()
    return record


def write(memory: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Appends, supersedes and commits until the time is up; what was acknowledged, by source."""
    dice, live, commits = random.Random(seed), {}, 0
    repository, until = Repository.open(memory), time.monotonic() + seconds
    with repository.writer(layer=SPEC) as writer:
        while time.monotonic() < until:
            source = f"document {dice.randrange(40)}"
            live[source] = append(writer, source, dice.randint(1, 20), live.get(source))
            if dice.random() < 0.1:
                writer.commit(f"commit {commits}")
                commits += 1
    return {"live": {source: record.ordinal for source, record in live.items()}, "commits": commits}


def read(memory: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Takes snapshots, checks each, and checks again that those it holds are what they were. How many there were."""
    dice, held, seen, checks = random.Random(seed), [], 0, 0
    repository, until, longest = Repository.open(memory), time.monotonic() + seconds, 0
    views = set()
    while time.monotonic() < until:
        if len(held) >= 4:
            del held[dice.randrange(4)]
        snapshot = repository.snapshot()
        if snapshot.blocks < longest:
            raise AssertionError(f"{snapshot.blocks} blocks after {longest}")
        longest = snapshot.blocks
        held.append((snapshot, view_of(snapshot)))
        views.add(held[-1][1])
        seen += 1
        old, was = held[dice.randrange(len(held))]
        if view_of(old) != was:
            raise AssertionError("a snapshot has changed")
        checks += 1
    return {"snapshots": seen, "views": len(views), "checks": checks, "blocks": longest}


def view_of(snapshot: Snapshot) -> str:
    """Checks that everything is what its place says, and that documents tile the blocks; a hash of all of it."""
    index = np.arange(snapshot.blocks)
    if not np.array_equal(snapshot.tokens(0, snapshot.blocks), ids_at(index)):
        raise AssertionError("tokens are not those of their places")
    parts = [snapshot.commit_name]
    for lod in range(1, 6):
        count = nodes(snapshot.blocks, lod)
        if count and not np.array_equal(snapshot.gists(lod, 0, count), gists_at(lod, np.arange(count))):
            raise AssertionError(f"gists of level {lod} are not those of their places")
        few = np.random.default_rng(snapshot.blocks).integers(0, max(count, 1), 50 if count else 0)
        if count and not np.array_equal(snapshot.gists_at(lod, few), gists_at(lod, few)):
            raise AssertionError(f"scattered gists of level {lod} are not those of their places")
    timeline, at, last = snapshot.timeline(), 0, {}
    for record in snapshot.documents:
        if record.start_block != at or record.text_hash != f"{record.source} at {at}":
            raise AssertionError(f"{record} does not follow what is before it")
        at += record.blocks
        last[record.source] = record
        parts.append(record.text_hash)
    live = list(snapshot.documents.live())
    if at != snapshot.blocks or {record.source: record for record in live} != last:
        raise AssertionError("the documents do not cover the blocks")
    if sum(record.blocks for record in live) != timeline.live_blocks:
        raise AssertionError("other blocks are dead than those of superseded documents")
    return digest("\n".join(parts).encode())


def contend(memory: Path, name: str, documents: int) -> dict[str, Any]:
    """Adds documents to one branch, each with a writer of its own, against others that do the same; how often it had to
    wait."""
    repository, refused = Repository.open(memory), 0
    for number in range(documents):
        while True:
            try:
                with repository.writer(layer=SPEC) as writer:
                    append(writer, f"{name} {number}", 1 + number % 3, None)
                    if number % 2:
                        writer.commit(name)
                break
            except BranchLocked as error:
                if "is being written by process" not in str(error):
                    raise
                refused += 1
                time.sleep(0.001)
    return {"refused": refused}


def claim(memory: Path, names: list[str]) -> dict[str, Any]:
    """Tries to create branches that others want to create, too; those that it got."""
    repository, mine = Repository.open(memory), []
    for name in names:
        try:
            repository.create_branch(name)
            mine.append(name)
        except InvalidInput as error:
            if "exists already" not in str(error):
                raise
    return {"mine": mine}
