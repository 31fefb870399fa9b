"""Where the parts of a memory lie on the local disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megacontext.errors import BranchLocked
from megacontext.storage.access import Access
from megacontext.storage.format import check_writable
from megacontext.storage.objects import LocalObjectStore, ObjectReader
from megacontext.storage.refs import Refs, quoted
from megacontext.storage.whole import WholeReader, WholeStore

INFO = "megacontext.json"
# There while documents are being erased: see `erasure.intent`.
ERASING = "erasing"
FOLDERS = ("objects", "refs/heads", "refs/tags", "journal", "locks", "staging")


@dataclass(frozen=True)
class Place:
    """The folder of a memory, with what everyone who reads it shares."""

    root: Path
    segment_blocks: int
    refs: Refs
    reader: ObjectReader
    format: int
    access: Access | None = None
    """Who may not see everything; None: whoever reads is denied nothing."""
    appending: bool = False
    """Whoever is denied something only adds what is new; nothing else that writes is open to them."""
    erasing: bool = False
    """Whether this is who carries out an erasure; nobody else writes meanwhile."""

    def journal(self, branch: str) -> Path:
        """The journal of a branch."""
        return self.root / "journal" / f"{quoted(branch)}.wal"

    def lock(self, branch: str) -> Path:
        """The file whose lock makes a process the branch's writer. Raises FormatVersionError for a memory that is only
        read, since its format is an earlier one, BranchLocked while documents are being erased."""
        check_writable(self.root, self.format)
        if not self.erasing and (self.root / ERASING).exists():
            raise BranchLocked(
                "documents are being erased from this memory: wait, or run megacontext erase --finish if that was interrupted"
            )
        return self.root / "locks" / quoted(branch)

    def store(self, branch: str) -> LocalObjectStore:
        """An object store to write to, for whoever holds the branch."""
        return local_store(self.root, quoted(branch))

    def whole(self) -> WholeReader:
        """A reader of what is pruned as well."""
        return WholeReader(WholeStore(self.root))


def local_store(root: Path, staging: str) -> LocalObjectStore:
    """The objects of a memory, with a staging folder of that name."""
    return LocalObjectStore(root / "objects", root / "staging" / staging)
