"""Writing side by side: bulk ingest, durable appends, branches, and a change of one document in a hundred."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from megacontext.core.node import BLOCK
from megacontext.evaluation.storage_bench.config import StorageBenchConfig
from megacontext.evaluation.storage_bench.content import Batch, Content
from megacontext.evaluation.storage_bench.plain import PlainFile, PlainLog, plain_replace
from megacontext.evaluation.storage_bench.timing import Stopwatch, Thunk, alone, compared, in_turns
from megacontext.storage import BranchWriter, DocumentRecord, LayerSpec, Repository
from megacontext.storage.gists import nodes
from megacontext.storage.tensors import F16, I64

Progress = Callable[[], None]
Stage = Callable[[str, int], AbstractContextManager[Progress]]
Records = list[dict[str, Any]]
EVERY = 100
"""One document in so many changes."""
APPENDED = (1, 32)
"""Blocks of one durable append."""
MEGA = 1_000_000


def ingest(
    repository: Repository, plain: PlainFile, content: Content, config: StorageBenchConfig, progress: Progress
) -> Records:
    """Writes all blocks to both, and says how many megabytes a second that gave."""
    ours, theirs = Stopwatch(), Stopwatch()
    due = config.commit_blocks
    with repository.writer(layer=content.spec) as writer:
        for batch in content.batches(config.blocks, config.batch_blocks):
            settle = content.at >= due or content.at == config.blocks
            due += config.commit_blocks if settle else 0
            with ours:
                _ingest_batch(writer, batch, config.document_blocks, settle)
            with theirs:
                plain.write(batch)
                plain.sync()
            progress()
    size = plain.nbytes / MEGA
    return [
        {
            "what": "bulk ingest",
            "blocks": config.blocks,
            "megabytes": round(size, 3),
            "memory": {"mb_per_s": round(size / ours.seconds, 1)},
            "plain": {"mb_per_s": round(size / theirs.seconds, 1)},
            "ratio": round(ours.seconds / theirs.seconds, 3),
        }
    ]


def appends(repository: Repository, folder: Path, content: Content, config: StorageBenchConfig, progress: Progress) -> Records:
    """Blocks that are acknowledged one append at a time, at the end of all that is there."""
    records = []
    log = PlainLog(folder / "log")
    with repository.writer(layer=content.spec) as writer:
        for blocks in APPENDED:
            writer.begin_document(source=f"appended {blocks}")

            def ours(blocks: int = blocks) -> Thunk:
                batch = content.batch(blocks)
                return lambda: _acknowledged(writer, batch)

            def plain(blocks: int = blocks) -> Thunk:
                again = Content(content.spec, config.seed, content.at - content.at % blocks)
                data = b"".join(rows.tobytes() for rows in again.batch(blocks).columns().values())
                return lambda: log.append(data)

            taken = in_turns([ours, plain], config.appends, progress)
            records.append(compared("durable append", *taken, blocks=blocks, behind=config.blocks))
            writer.end_document()
        writer.commit("appended")
    log.close()
    return records


def branching(repository: Repository, folder: Path, config: StorageBenchConfig, progress: Progress) -> Records:
    """A branch from the newest commit, and one from the first, empty one: the size must not matter."""
    names = (f"branch/{number}" for number in count())
    history = [name for name, _ in repository.history()]

    def branch(at: str) -> Thunk:
        name = next(names)
        return lambda: repository.create_branch(name, at)

    ways = [lambda: branch(history[0]), lambda: branch(history[-1]), lambda: lambda: plain_replace(folder / "ref", b"x" * 150)]
    newest, empty, plain = in_turns(ways, config.branches, progress)
    return [
        compared("branch", newest, plain, blocks=repository.commit(history[0]).blocks),
        compared("branch", empty, plain, blocks=0),
    ]


def one_percent_changed(
    repository: Repository, plain: PlainFile, spec: LayerSpec, config: StorageBenchConfig, stage: Stage
) -> Records:
    """Every hundredth document is superseded by a new version on a branch; then the two are compared."""
    before = repository.resolve()
    documents = list(repository.snapshot().documents)
    content = Content(spec, config.seed + 1, repository.snapshot().blocks)
    repository.create_branch("changed")
    changed = documents[::EVERY]
    superseding, settling = [Stopwatch() for _ in changed], Stopwatch()
    with (
        stage("changing one document in a hundred", len(changed)) as progress,
        repository.writer("changed", layer=spec) as writer,
    ):
        for record, watch in zip(changed, superseding, strict=True):
            with watch:
                _supersede(writer, content, record)
            progress()
        with settling:
            writer.commit("one in a hundred changed")
    after = repository.resolve("changed")

    def ours() -> Thunk:
        fresh = Repository.open(repository.root)
        return lambda: fresh.changes(before, after)

    ids = plain.open(scattered=False)["ids"]
    other = ids.copy()
    other[::EVERY] ^= 1

    def theirs() -> Thunk:
        return lambda: np.flatnonzero((ids != other).any(axis=1))

    with stage("comparing", config.cold_reads) as progress:
        taken = in_turns([ours, theirs], config.cold_reads, progress)
    found = len(repository.changes(before, after))
    return [
        alone("supersede", superseding, blocks=config.document_blocks),
        alone("commit of one document in a hundred", [settling], documents=len(changed)),
        compared("diff", *taken, changed=found, documents=len(documents)),
    ]


def _ingest_batch(writer: BranchWriter, batch: Batch, document_blocks: int, settle: bool) -> None:
    """The blocks of a batch as documents, and a commit where it is due."""
    first = writer.blocks
    for low in range(0, len(batch.ids), document_blocks):
        part = slice(low, low + document_blocks)
        start, stop = first + low, first + min(low + document_blocks, len(batch.ids))
        gists = {}
        for lod, (at, rows) in batch.gists.items():
            own = nodes(start, lod), nodes(stop, lod)
            if own[1] > own[0]:
                gists[lod] = own[0], rows[own[0] - at : own[1] - at]
        writer.begin_document(source=f"document {start}", text_hash=str(start))
        writer.append_blocks(batch.ids[part], gists=gists, chars=batch.chars[part], lines=batch.lines[part])
        writer.end_document()
    if settle:
        writer.commit("ingested")
    else:
        writer.sync()


def _acknowledged(writer: BranchWriter, batch: Batch) -> None:
    _append(writer, batch)
    writer.sync()


def _append(writer: BranchWriter, batch: Batch) -> None:
    writer.append_blocks(batch.ids, gists=batch.gists, chars=batch.chars, lines=batch.lines)


def _supersede(writer: BranchWriter, content: Content, record: DocumentRecord) -> None:
    """A new version of a document, with the gists of every node that holds dead blocks made again."""
    batch = content.batch(record.blocks)
    writer.begin_document(source=record.source, text_hash="changed", version=record.version + 1)
    _append(writer, batch)
    patches: dict[int, tuple[I64, F16]] = {}
    lod = 2
    while nodes(writer.blocks, lod):
        span = BLOCK ** (lod - 1)
        stop = min(-(-(record.start_block + record.blocks) // span), nodes(writer.blocks, lod))
        index = np.arange(record.start_block // span, stop, dtype=np.int64)
        if len(index):
            patches[lod] = index, content.gists(len(index))
        lod += 1
    writer.end_document(replaces=record, patches=patches)
    writer.sync()
