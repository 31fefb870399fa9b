"""Carrying out an erasure whose new commits are all there. Every step may be taken again, so a crash costs a repetition."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from megacontext.errors import EraseIncomplete, StorageError
from megacontext.storage import audit, files
from megacontext.storage.erased import ErasedList, take_in
from megacontext.storage.erasure.intent import Intent, forget, load_intent
from megacontext.storage.erasure.needles import Finder
from megacontext.storage.erasure.proof import nothing_found, scan
from megacontext.storage.format import check_writable
from megacontext.storage.garbage import collect
from megacontext.storage.info import read_info
from megacontext.storage.objects import ObjectReader
from megacontext.storage.place import ERASING, Place, local_store
from megacontext.storage.refs import BRANCHES, Refs
from megacontext.storage.stubs import Stubs
from megacontext.storage.transaction import Transaction

log = logging.getLogger(__name__)

INDEXES = "index"


def place_of(root: Path) -> Place:
    """The memory at `root`, also while it is being erased from."""
    info = read_info(root)
    check_writable(root, info.format)
    reader = ObjectReader(local_store(root, "unused"), stubs=Stubs(root))
    return Place(root, info.segment_blocks, Refs(root), reader, info.format, erasing=True)


@contextmanager
def erasing(root: Path) -> Iterator[None]:
    """Erasing from a memory, alone; raises BranchLocked where somebody else does."""
    lock = files.FileLock(root / "locks" / ".erase")
    try:
        lock.acquire(wait=False, what="the erasing of documents")
        yield
    finally:
        lock.release()


@contextmanager
def all_branches(place: Place) -> Iterator[dict[str, Transaction]]:
    """Every branch, for ourselves; raises BranchLocked where one is being written."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(Transaction(place, name)) for name in place.refs.names(BRANCHES)}


def resume(root: Path) -> None:
    """Finishes what a crash interrupted, where it can; called whenever a memory is opened, and never in its way."""
    if not (root / ERASING).exists():
        return
    try:
        with erasing(root):
            finish(root)
    except (StorageError, EraseIncomplete) as error:
        log.warning("an interrupted erasure at %s is not finished yet: %s", root, error)


def finish(root: Path) -> dict[str, Any] | None:
    """Carries out the erasure that has begun, if one has; the caller has it for itself (`erasing`). Returns its receipt.

    Raises BranchLocked while a branch is being written or an archive imported, EraseIncomplete where the scan still finds
    something: then the note of it stays, and it can be finished later.
    """
    intent = load_intent(root)
    if intent is None:
        return None
    place = place_of(root)
    with all_branches(place) as branches:
        for kind, name, commit in all_refs(root):
            if kind != BRANCHES and commit in intent.renamed:
                place.refs.move(kind, name, commit, intent.renamed[commit])
        finder = Finder(intent.needles)
        for name, branch in branches.items():
            new = intent.renamed.get(branch.commit_name)
            # A document that was left unfinished there may be one of those that go.
            if new is not None or finder.find_in_file(place.journal(name)):
                branch.move(new or branch.commit_name)
        _delete_indexes(root)
        take_in(root, ErasedList.from_json(dict(intent.erased)))
        collect(root, grace=0, held=tuple(branches))
        _destroy(root, intent.elsewhere)
    return _prove(root, intent, finder)


def _destroy(root: Path, archived: Sequence[str]) -> None:
    """Removes archived objects outside of the memory that it does not need any more."""
    needed = set(Stubs(root).elsewhere())
    gone = [path for path in map(Path, archived) if str(path) not in needed and path.exists()]
    for path in gone:
        files.remove(path)
    files.sync_all(sorted({path.parent for path in gone}), files.sync_folder)


def all_refs(root: Path) -> list[tuple[str, str, str]]:
    """Kind, name and commit of everything that names a commit."""
    refs, found = Refs(root), []
    for folder in sorted(path for path in (root / "refs").iterdir() if path.is_dir()):
        for name in refs.names(folder.name):
            commit = refs.read(folder.name, name)
            if commit is not None:
                found.append((folder.name, name, commit))
    return found


def _delete_indexes(root: Path) -> None:
    folder = root / INDEXES
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() or path.is_symlink():
            files.remove(path)
    if folder.is_dir():
        files.sync_folder(folder)


def _prove(root: Path, intent: Intent, finder: Finder) -> dict[str, Any]:
    """The scan after it, the line in the audit log, and the end of the note."""
    after = scan(root, finder, set(intent.originals), {*Stubs(root).elsewhere(), *intent.elsewhere})
    report = after.report(finder)
    if not nothing_found(report):
        raise EraseIncomplete(
            f"something of what was erased is still found in {after.where(finder)}: see that nothing else uses the memory, "
            "then run megacontext erase --finish"
        )
    receipt = {**intent.receipt, "id": intent.id, "after": report}
    if not any(entry.act == "erase" and entry.details.get("id") == intent.id for entry in audit.read(root).entries):
        audit.append(root, "erase", receipt, author=intent.author)
    forget(root)
    return receipt
