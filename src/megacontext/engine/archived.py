"""Documents that were pruned into an archive that is not at hand: what needs their tokens names them and says what to do."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from megacontext.core.ranges import BlockRanges
from megacontext.engine.merge_plan import listed
from megacontext.errors import DetailPruned
from megacontext.storage import DocumentRecord, Repository


def out_of_reach(repository: Repository, commit: str, records: Iterable[DocumentRecord]) -> tuple[DocumentRecord, ...]:
    """Which of these documents of a commit cannot be read, not even in the archives that are at hand."""
    if repository.deny:
        return ()
    blocks, originals = repository.pruner().out_of_reach(commit)
    lost = BlockRanges.of(blocks)

    def gone(record: DocumentRecord) -> bool:
        start, stop = record.span
        inside = bool(((lost.starts < stop) & (lost.stops > start)).any())
        return record.original in originals if record.original else inside

    return tuple(record for record in records if gone(record)) if blocks or originals else ()


def refuse(records: Collection[DocumentRecord], what: str, instead: str = "") -> None:
    """Raises DetailPruned, which names them and what to run, if there are any."""
    if records:
        names = [record.source for record in records]
        raise DetailPruned(
            f"{what} needs the raw tokens of {listed(names)}, which were pruned into an archive that is not at hand: make it "
            f"reachable, or run megacontext restore --archive FOLDER {' '.join(names[:3])}{instead}"
        )
