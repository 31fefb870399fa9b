"""gc: removes the objects that nothing needs any more, such as those of deleted branches.

Needed is what a branch, a tag or a journal leads to, what a running writer has put down, and what is younger than a grace
period: a writer names its objects only after all of them are durable. The rest is removed in small steps, each of which
looks again at what is named while nothing can be named (`locks/.sweep`, `locks/.refs`). A crash leaves some of the rest
for the next time, and nothing else.
"""

from __future__ import annotations

import json
import shutil
import time as clock
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from megacontext.errors import BranchLocked, CorruptObject, InvalidInput
from megacontext.storage import files
from megacontext.storage.closure import ORIGINAL, Closure, Named
from megacontext.storage.commit import KIND as COMMIT
from megacontext.storage.documents import RECORDS
from megacontext.storage.erasure.intent import load_intent
from megacontext.storage.format import check_writable
from megacontext.storage.hashing import is_name
from megacontext.storage.info import read_info
from megacontext.storage.journal import JournalContent, RecordKind, originals, read_journal
from megacontext.storage.objects import LocalObjectStore, ObjectReader
from megacontext.storage.place import local_store
from megacontext.storage.refs import BRANCHES, Refs, quoted
from megacontext.storage.stubs import ARCHIVE, Stubs
from megacontext.storage.stubs import FOLDER as STUBS
from megacontext.storage.stubs import LOCK as PRUNING

GRACE = 3600.0
IMPORTS = ".import"
# Removed under one lock: writers wait for a few milliseconds.
_STEP = 256
# Where an object says what it holds, if it says so at all.
_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """What gc found. `kept` objects of `kept_bytes` are needed, `young` ones would be garbage but are younger than the grace
    period; `kinds` maps what the garbage holds (such as "tokens") to how many objects of how many bytes; `leftovers` are
    files of interrupted writers. `pruned` are stubs of pruned objects that nothing needs, and the memory's own archived copies
    of such, together of `pruned_bytes`; `outside` are archived objects in other folders that this memory does not need any
    more: they stay, since another memory may. `removed` is False for a dry run."""

    kept: int
    kept_bytes: int
    young: int
    kinds: dict[str, tuple[int, int]]
    leftovers: int
    pruned: int
    pruned_bytes: int
    outside: tuple[str, ...]
    removed: bool

    @property
    def objects(self) -> int:
        """How many objects nothing needs."""
        return sum(count for count, _ in self.kinds.values())

    @property
    def bytes(self) -> int:
        """How many bytes they have."""
        return sum(size for _, size in self.kinds.values())


def collect(root: Path, *, grace: float = GRACE, dry_run: bool = False, held: Collection[str] = ()) -> Garbage:
    """Removes what nothing needs from the memory at `root`; a dry run only looks.

    `grace` is in seconds. With 0 no branch may be written meanwhile: raises BranchLocked, except for branches in `held`,
    whose locks the caller has. Raises CorruptObject or MissingObject, and removes nothing, where it cannot be told what is
    needed.
    """
    if not grace >= 0:
        raise InvalidInput(f"a grace period has 0 seconds or more, not {grace}")
    info = read_info(root)
    if not dry_run:
        check_writable(root, info.format)
    with ExitStack() as stack:
        if grace == 0 and not dry_run:
            stack.enter_context(nobody_writes(root, held))
        return _Collector(root, grace, dry_run, held).run()


class _Collector:
    def __init__(self, root: Path, grace: float, dry_run: bool, held: Collection[str]) -> None:
        self._root = root
        self._dry_run = dry_run
        self._held = held
        self._before = clock.time() - grace if grace else float("inf")
        self._store: LocalObjectStore = local_store(root, "unused")
        self._closure = Closure(ObjectReader(self._store, keep=256))

    def run(self) -> Garbage:
        leftovers = self._staging()
        self._mark()
        kept = kept_bytes = young = 0
        kinds: dict[str, tuple[int, int]] = {}
        garbage: list[tuple[str, str]] = []
        for name in self._store.names():
            found = self._store.stat(name)
            if found is None:
                continue
            if name in self._closure.names:
                kept, kept_bytes = kept + 1, kept_bytes + found.size
            elif found.changed >= self._before:
                young += 1
            else:
                kind = _kind(self._store.peek(name, _HEAD_BYTES))
                count, size = kinds.get(kind, (0, 0))
                kinds[kind] = (count + 1, size + found.size)
                garbage.append((kind, name))
        if not self._dry_run:
            # Commits first: a commit that is there is whole.
            garbage.sort(key=lambda each: (each[0] != COMMIT, each))
            for at in range(0, len(garbage), _STEP):
                self._remove([name for _, name in garbage[at : at + _STEP]])
        pruned, pruned_bytes, outside = self._archives()
        return Garbage(
            kept=kept,
            kept_bytes=kept_bytes,
            young=young,
            kinds=dict(sorted(kinds.items())),
            leftovers=leftovers,
            pruned=pruned,
            pruned_bytes=pruned_bytes,
            outside=outside,
            removed=not self._dry_run,
        )

    def _remove(self, names: Sequence[str]) -> None:
        refs = files.FileLock(self._root / "locks" / ".refs")
        sweep = self._store.sweep_lock()
        try:
            sweep.acquire(wait=True, what="the objects")
            refs.acquire(wait=True, what="the refs")
            self._mark()
            self._store.remove(name for name in names if name not in self._closure.names and self._old(name))
        finally:
            refs.release()
            sweep.release()

    def _archives(self) -> tuple[int, int, tuple[str, ...]]:
        """Stubs and archived copies that nothing needs; removes them, the copies first: a stub tells what it is a stub of."""
        refs, pruning = (files.FileLock(self._root / "locks" / name) for name in (".refs", PRUNING))
        sweep = self._store.sweep_lock()
        with ExitStack() as stack:
            for lock, what in ((pruning, "what is pruned"), (sweep, "the objects"), (refs, "the refs")):
                stack.callback(lock.release)
                lock.acquire(wait=True, what=what)
            self._mark()
            needless = [path for path in self._pruned_files() if path.name not in self._closure.names and self._aged(path)]
            gone = {path.name for path in needless}
            outside = tuple(path for path in Stubs(self._root).elsewhere() if Path(path).name in gone)
            size = sum(path.stat().st_size for path in needless)
            if not self._dry_run:
                for path in needless:
                    files.remove(path)
                files.sync_all(sorted({path.parent for path in needless}), files.sync_folder)
        return len(needless), size, outside

    def _pruned_files(self) -> list[Path]:
        folders = (self._root / ARCHIVE, self._root / STUBS)
        return [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir()) if is_name(path.name)]

    def _aged(self, path: Path) -> bool:
        found = path.stat()
        return max(found.st_mtime, found.st_ctime) < self._before

    def _old(self, name: str) -> bool:
        found = self._store.stat(name)
        return found is not None and found.changed < self._before

    def _mark(self) -> None:
        """Reaches everything that is named now, and was not before."""
        for _ in self._closure.below(list(self._roots())):
            pass

    def _roots(self) -> Iterator[Named]:
        # Journals first: what is committed between two looks is then seen as the branch's.
        for path in sorted((self._root / "journal").glob("*.wal")) + self._asides():
            content = _read_journal(path)
            if content is not None:
                yield from self._of_journal(content)
        # An erasure that has begun goes to commits that nothing else names yet.
        if (intent := load_intent(self._root)) is not None:
            new = set(intent.renamed.values()) - intent.renamed.keys()
            yield from (Named(name, COMMIT) for name in new if self._store.has(name))
        refs = Refs(self._root)
        for kind in sorted(folder.name for folder in (self._root / "refs").iterdir() if folder.is_dir()):
            for name in refs.names(kind):
                commit = refs.read(kind, name)
                if commit is not None:
                    yield Named(commit, COMMIT)

    def _asides(self) -> list[Path]:
        """Journals of what writers put down out of everybody's sight."""
        return sorted((self._root / "staging").glob("*/*.wal"))

    def _of_journal(self, content: JournalContent) -> Iterator[Named]:
        marks = (frame for frame in content.frames if frame.kind == RecordKind.COMMIT)
        commits = [content.base, *(frame.parse().metadata["commit"] for frame in marks)]
        yield from (Named(name, ORIGINAL) for name in originals(content.frames))
        # A journal may outlive the commits that it went through; a branch that needs one of them names it.
        yield from (Named(name, COMMIT) for name in commits if self._store.has(name))

    def _staging(self) -> int:
        """Files that interrupted writers left; removes them. What a running writer stages is its own."""
        count = 0
        for folder in sorted((self._root / "staging").iterdir()) if (self._root / "staging").is_dir() else ():
            if unquote(folder.name) in self._held or not folder.is_dir():
                continue
            lock = files.FileLock(self._root / "locks" / folder.name)
            with suppress(BranchLocked):
                lock.acquire(wait=False, what=folder.name)
                count += sum(1 for path in folder.rglob("*") if path.is_file())
                if not self._dry_run:
                    shutil.rmtree(folder, ignore_errors=True)
            lock.release()
        return count


def _read_journal(path: Path) -> JournalContent | None:
    """The journal, also where a writer that cuts a torn end is met half way."""
    for _ in range(3):
        with suppress(CorruptObject):
            return read_journal(path)
        clock.sleep(0.01)
    return read_journal(path)


@contextmanager
def nobody_writes(root: Path, held: Collection[str] = ()) -> Iterator[None]:
    """All branches that are not `held`, and the importing of archives, for ourselves."""
    with ExitStack() as stack:
        names = [quoted(name) for name in Refs(root).names(BRANCHES) if name not in held]
        for name in (*names, IMPORTS):
            lock = files.FileLock(root / "locks" / name)
            stack.callback(lock.release)
            lock.acquire(wait=False, what=f"branch {unquote(name)!r}" if name != IMPORTS else "an archive that is imported")
        yield


def _kind(head: bytes) -> str:
    """What an object holds by its first bytes; what says nothing is the original of a document."""
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if head.startswith(b"{"):
            # Canonical JSON, perhaps cut: the kind is in front of all that can be long, but for what a commit says.
            kind = json.loads(head)["kind"] if len(head) < _HEAD_BYTES else RECORDS
        else:
            length = int.from_bytes(head[:8], "little")
            kind = json.loads(head[8 : 8 + length])["__metadata__"]["kind"]
        return str(kind)
    return ORIGINAL
