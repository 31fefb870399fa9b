"""Prune and restore: the raw tokens of documents go to an archive and come back; what was made of them stays in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megacontext.engine.remove import matching
from megacontext.errors import ConfigError
from megacontext.storage import DocumentRecord, Repository, Snapshot, audit
from megacontext.storage.pruning import Choice, Moved


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What was pruned or restored, or in a dry run would be: documents by source, how many blocks of them lost (or got back)
    their raw tokens, in how many objects of how many bytes. ``kept`` blocks stay: they are under a protected tag, or at the end
    of a branch, which is still written. A dry run names all documents that were asked for, those that stay too."""

    documents: tuple[str, ...]
    blocks: int
    objects: int
    bytes: int
    kept: int
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "documents": list(self.documents)}


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
    """
    snapshot = repository.snapshot()
    records = _chosen(snapshot, patterns, before)
    sources = tuple(record.source for record in records)
    pruner, choice = repository.pruner(), _by_source(sources)
    detail = pruner.without_kept(pruner.find(snapshot.commit_name, choice), snapshot.commit_name, choice)
    objects = len(detail.pieces) + len(detail.originals)
    raw = _raw(snapshot, records)
    if dry_run:
        blocks, kept = raw - detail.kept, detail.kept
        return Pruned(documents=sources, blocks=blocks, objects=objects, bytes=0, kept=kept, dry_run=True)
    moved = pruner.prune(detail, archive)
    if moved.objects:
        _log(repository, "prune", len(sources), moved, author)
    now = repository.snapshot()
    blocks = raw - _raw(now, records)
    went = tuple(record.source for record in records if _raw(now, [record]) < _raw(snapshot, [record]))
    return Pruned(documents=went, blocks=blocks, objects=moved.objects, bytes=moved.bytes, kept=raw - blocks, dry_run=False)


def restore(
    repository: Repository,
    patterns: Sequence[str] = (),
    *,
    archive: Path | None = None,
    dry_run: bool = False,
    author: str = "",
) -> Pruned:
    """Brings raw tokens back, bit for bit: those of live documents that fit ``patterns``, or all. ``archive`` is where to look
    instead of where they were put. Raises MissingObject, CorruptObject with what came before them restored."""
    snapshot = repository.snapshot()
    records = matching(snapshot, patterns) if patterns else list(snapshot.documents.live())
    pruner = repository.pruner()
    choice = _by_source([record.source for record in records])
    detail = pruner.find(snapshot.commit_name, choice) if patterns else None
    records = [record for record in records if _raw(snapshot, [record]) < record.blocks]
    sources = tuple(record.source for record in records)
    if dry_run:
        blocks = sum(record.blocks for record in records) - _raw(snapshot, records)
        return Pruned(documents=sources, blocks=blocks, objects=0, bytes=0, kept=0, dry_run=True)
    moved = pruner.restore(detail, archive)
    if moved.objects:
        _log(repository, "restore", len(sources), moved, author)
    now = _raw(repository.snapshot(), records)
    return Pruned(
        documents=sources,
        blocks=now - _raw(snapshot, records),
        objects=moved.objects,
        bytes=moved.bytes,
        kept=sum(record.blocks for record in records) - now,
        dry_run=False,
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


def _raw(snapshot: Snapshot, records: Sequence[DocumentRecord]) -> int:
    """How many blocks of documents can be read raw."""
    timeline = snapshot.timeline()
    return sum(int((timeline.finest(timeline.present(*record.span)) == 0).sum()) for record in records)


def _log(repository: Repository, act: str, documents: int, moved: Moved, author: str) -> None:
    audit.append(repository.root, act, {"documents": documents, **asdict(moved)}, author=author)
