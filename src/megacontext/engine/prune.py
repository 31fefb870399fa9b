"""Prune and restore: the raw tokens of documents go to an archive and come back; what was made of them stays in use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megacontext.core.ranges import BlockRange
from megacontext.engine.remove import matching
from megacontext.errors import BranchLocked, ConfigError
from megacontext.storage import DocumentRecord, Repository, Snapshot, audit
from megacontext.storage.pruning import Choice, Moved


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What was pruned or restored, or in a dry run would be: documents by source, how many blocks of them lost (or got back)
    their raw tokens, in how many objects of how many bytes. ``kept`` blocks stay as they are; ``keepers`` maps each branch and
    tag that keeps some of them to why."""

    documents: tuple[str, ...]
    blocks: int
    objects: int
    bytes: int
    kept: int
    keepers: Mapping[str, str]
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "documents": list(self.documents), "keepers": dict(self.keepers)}


def prune(
    repository: Repository,
    patterns: Sequence[str] = (),
    *,
    before: float | None = None,
    archive: Path | None = None,
    dry_run: bool = False,
    author: str = "",
) -> Pruned:
    """Archives the raw tokens of live documents that fit ``patterns`` (see ``remove``), or that were added ``before`` a moment
    (seconds since 1970), with all their versions. Their gists stay; ``archive`` is a folder (None: in the memory).

    Raises UnknownReference where a pattern fits nothing. Blocks are counted as of now; the objects of older versions go along.
    What is in no commit yet is committed first, unless somebody is writing the branch; then it stays, and that is said.
    """
    _chosen(repository.snapshot(), patterns, before)
    if not dry_run:
        with suppress(BranchLocked), repository.transaction():  # which begins with a commit of what the journal holds
            pass
    snapshot = repository.snapshot()
    records = _chosen(snapshot, patterns, before)
    pruner, choice = repository.pruner(), _by_source([record.source for record in records])
    found = pruner.find(snapshot.commit_name, choice)
    with pruner.held(found, commit=not dry_run) as busy:
        detail = pruner.without_kept(found, busy)
        # Those of a journal come with the next commit, which begins what is not a dry run.
        going = pruner.going(detail, snapshot.commit_name)
        going += ((snapshot.commit.blocks, snapshot.blocks),) if dry_run and repository.head not in busy else ()
        raw = {record: _raw(snapshot, record.span) for record in records}
        goes = {record: sum(_raw(snapshot, span) for span in _common(going, [record.span])) for record in records}
        moved = Moved(objects=len(detail.pieces) + len(detail.originals), rows=0, bytes=0)
        if not dry_run:
            moved = pruner.prune(detail, archive)
    sources = tuple(record.source for record in records if goes[record] or (record.original in detail.originals))
    if moved.objects and not dry_run:
        _log(repository, "prune", len(sources), moved, author)
    blocks = sum(goes.values())
    return Pruned(
        documents=sources,
        blocks=blocks,
        objects=moved.objects,
        bytes=moved.bytes,
        kept=sum(raw.values()) - blocks,
        keepers=detail.keepers,
        dry_run=dry_run,
    )


def restore(
    repository: Repository,
    patterns: Sequence[str] = (),
    *,
    archive: Path | None = None,
    dry_run: bool = False,
    author: str = "",
) -> Pruned:
    """Brings raw tokens back, bit for bit: those of live documents that fit ``patterns``, or all. ``archive`` is where to look
    instead of where they were put. Raises MissingObject, CorruptObject with what came before them restored, BranchLocked where
    they are the end of a branch that somebody is writing."""
    snapshot = repository.snapshot()
    records = matching(snapshot, patterns) if patterns else list(snapshot.documents.live())
    pruner = repository.pruner()
    choice = _by_source([record.source for record in records])
    detail = pruner.find(snapshot.commit_name, choice) if patterns else None
    records = [record for record in records if _raw(snapshot, record.span) < record.blocks]
    held = detail or pruner.all(snapshot.commit_name)
    with pruner.held(held) as busy:
        if busy and not dry_run:
            raise BranchLocked(next(iter(busy.values())))
        moved = pruner.restore(detail, archive, look=dry_run)
    if moved.objects and not dry_run:
        _log(repository, "restore", len(records), moved, author)
    lack = sum(record.blocks - _raw(snapshot, record.span) for record in records)
    now = snapshot if dry_run else repository.snapshot()
    left = 0 if dry_run else sum(record.blocks - _raw(now, record.span) for record in records)
    return Pruned(
        documents=tuple(record.source for record in records),
        blocks=lack - left,
        objects=moved.objects,
        bytes=moved.bytes,
        kept=left,
        keepers={},
        dry_run=dry_run,
    )


def _chosen(snapshot: Snapshot, patterns: Sequence[str], before: float | None) -> list[DocumentRecord]:
    if bool(patterns) == (before is not None):
        raise ConfigError("name the documents to prune, or a time before which all are: one of both")
    if patterns:
        return matching(snapshot, patterns)
    return [record for record in snapshot.documents.live() if not record.open and record.ingested_at < float(before or 0)]


def _by_source(sources: Sequence[str]) -> Choice:
    known = frozenset(sources)
    return lambda record: record.source in known


def _raw(snapshot: Snapshot, span: BlockRange) -> int:
    """How many blocks of a span can be read raw."""
    timeline = snapshot.timeline()
    return int((timeline.finest(timeline.present(*span)) == 0).sum())


def _common(left: Iterable[BlockRange], right: Iterable[BlockRange]) -> list[BlockRange]:
    return [(max(a, c), min(b, d)) for a, b in left for c, d in right if max(a, c) < min(b, d)]


def _log(repository: Repository, act: str, documents: int, moved: Moved, author: str) -> None:
    audit.append(repository.root, act, {"documents": documents, **asdict(moved)}, author=author)
