"""Taking documents out of the live timeline: their blocks are dead from then on, and what was made of them is made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megacontext.engine.gist_builder import GistBuilder
from megacontext.errors import UnknownReference
from megacontext.index.source_patterns import choose, hint
from megacontext.models.base_lm import BaseLM
from megacontext.models.gistnet import GistEncoder
from megacontext.storage import BranchWriter, DocumentRecord, Repository, Snapshot


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What was taken out: sources, and the real tokens and blocks that they had; ``commit`` is where the branch is now."""

    removed: tuple[str, ...]
    tokens: int
    blocks: int
    commit: str

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**self.__dict__, "removed": list(self.removed)}


def remove(
    repository: Repository,
    base: BaseLM | None,
    encoder: GistEncoder | None,
    patterns: Sequence[str],
    *,
    branch: str | None = None,
    message: str = "",
    author: str = "",
) -> Removal:
    """Removes the live documents that ``patterns`` name (see ``index.source_patterns``), all in one commit or none.

    Older commits still have them. ``base`` and ``encoder`` make the gists above them again; None where there are none.
    Raises UnknownReference, with nothing removed, where a pattern fits no document.
    """
    matching(repository.snapshot(branch), patterns)
    builder = GistBuilder(base, encoder) if base is not None and encoder is not None else None
    with repository.transaction(branch) as transaction:
        with transaction.writer(builder.spec if builder else None) as writer:
            records = matching(writer.snapshot(), patterns)
            for record in records:
                remove_one(writer, builder, record)
            removed = writer.commit()
        sources = tuple(record.source for record in records)
        few = ", ".join(sources[:3]) + (f" and {len(sources) - 3} more" if len(sources) > 3 else "")
        commit = transaction.apply(removed, message=message or f"Remove {few}", author=author)
    return _removal(records, commit)


def would_remove(snapshot: Snapshot, patterns: Sequence[str]) -> Removal:
    """What ``remove`` would take out; ``commit`` is where the branch stays. Raises UnknownReference as it does."""
    return _removal(matching(snapshot, patterns), snapshot.commit_name)


def _removal(records: Sequence[DocumentRecord], commit: str) -> Removal:
    return Removal(
        removed=tuple(record.source for record in records),
        tokens=sum(record.tokens for record in records),
        blocks=sum(record.blocks for record in records),
        commit=commit,
    )


def remove_one(writer: BranchWriter, builder: GistBuilder | None, record: DocumentRecord) -> DocumentRecord:
    """Appends the tombstone of a live document, with the gists above it made again."""
    patches = None
    if builder is not None and record.blocks:
        after = writer.snapshot().timeline().kill(*record.span)
        patches = builder.remake(writer.written_layer(), after, [record.span])
    return writer.remove_document(record, patches)


def matching(snapshot: Snapshot, patterns: Sequence[str]) -> list[DocumentRecord]:
    """Live documents that ``patterns`` name (see ``index.source_patterns``), in order. UnknownReference for one without any."""
    live = {record.source: record for record in snapshot.documents.live() if not record.open}
    found: dict[int, DocumentRecord] = {}
    for pattern in patterns:
        chosen = choose(live, pattern)
        if not chosen:
            raise UnknownReference(f"no live document fits {pattern!r}{hint(live, pattern)}")
        found.update((live[source].ordinal, live[source]) for source in chosen)
    return [found[ordinal] for ordinal in sorted(found)]
