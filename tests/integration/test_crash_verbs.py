"""Every verb that writes, interrupted at random steps: nothing acknowledged is lost, nothing is half visible, fsck is clean,
and doing it again ends where it would have ended undisturbed.

Interrupted means: killed before a step, killed within a write, killed with what was not synced torn off or zeroed, a step that
fails, a disk that is full. A verb is a row of `crash_verbs.VERBS`.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from crash_verbs import VERBS, attempt, create

from megacontext.engine.bundle import load_bundle
from megacontext.errors import DetailPruned
from megacontext.storage import DocumentRecord, Repository, Snapshot
from megacontext.storage.compare import document_tokens
from megacontext.storage.hashing import digest
from megacontext.testing.faults import Fate, Faults
from megacontext.testing.killing import in_child
from megacontext.testing.tiny_bundle import save_tiny_bundle

KILLED = -9
TORN, ZEROED = "torn", "zeroed"
ENDS = (Fate.KILL, Fate.KILL_WITHIN, Fate.ERROR, Fate.FULL, TORN, ZEROED)
"""The last two: killed, and then what the journal's last sync did not cover is cut or zeroed from some byte on."""
State = dict[str, Any]


def seen(path: Path) -> State:
    """What readers see: on every branch and tag the live documents with their tokens, which blocks are dead, and all gists."""
    repository = Repository.open(path)
    state: State = {}
    for name in (*repository.branches(), *repository.tags()):
        snapshot = repository.snapshot(name)
        documents = [(each.source, tokens_of(snapshot, each)) for each in snapshot.documents.live()]
        gists = {}
        for fingerprint in snapshot.layers:
            layer, lod = snapshot.layer(fingerprint), 1
            while count := layer.count(lod):
                gists[fingerprint, lod] = digest(layer.gists(lod, 0, count).tobytes())
                lod += 1
        # Pruning and restoring go object by object: what of a document is there in between shows in `tokens_of`.
        state[name] = documents, replace(snapshot.timeline(), pruned=()), gists
    return state


def tokens_of(snapshot: Snapshot, record: DocumentRecord) -> bytes:
    """A document's tokens; nothing where some of them are pruned."""
    try:
        return document_tokens(snapshot, record).tobytes()
    except DetailPruned:
        return b""


@dataclass
class Told:
    """What a child wrote to its log."""

    acknowledged: int = 0
    steps: int = 0
    recovered_from: str = ""
    synced: dict[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, log: Path) -> Told:
        told = cls()
        for kind, *rest in (line.split() for line in log.read_text().splitlines()) if log.exists() else ():
            if kind == "acknowledged":
                told.acknowledged += 1
            elif kind == "steps":
                told.steps = int(rest[0])
            elif kind == "recovered":
                told.recovered_from = rest[0]
            elif kind == "synced":
                told.synced[int(rest[0])] = int(rest[1])
        return told


@dataclass(frozen=True)
class Undisturbed:
    """The memory ``before`` a verb, what readers saw then and after each acknowledgement, and how many steps it took."""

    before: Path
    states: list[State]
    steps: int


class Memories:
    """The memories that verbs act on, below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._known: dict[str, Undisturbed] = {}
        self.bundle = load_bundle(save_tiny_bundle(folder / "bundle", lensnet=False))

    def place(self) -> Path:
        """A path where nothing is yet."""
        return self._folder / str(next(self._numbers))

    def act(self, verb: str, memory: Path, faults: Faults, keep: Path | None = None) -> tuple[int, Told]:
        """Has a process do it; its exit code, and what it told."""
        log = self.place()
        code = in_child(lambda: attempt(self.bundle, memory, verb, log, faults, keep))
        return code, Told.read(log)

    def undisturbed(self, verb: str) -> Undisturbed:
        """Measured once for each verb."""
        if verb not in self._known:
            before, after, keep = (self.place() for _ in range(3))
            VERBS[verb].prepare(create(before, self.bundle))
            shutil.copytree(before, after)
            code, told = self.act(verb, after, Faults(), keep)
            assert code == 0
            states = [seen(before), *(seen(keep / str(number + 1)) for number in range(told.acknowledged))]
            assert states[-1] == seen(after) and Repository.open(after).fsck().clean
            self._known[verb] = Undisturbed(before, states, told.steps)
        return self._known[verb]


@pytest.fixture(scope="module")
def memories() -> Iterator[Memories]:
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared, prefix="megacontext-test-") as folder:
        yield Memories(Path(folder))


def lose_unsynced(memory: Path, synced: dict[int, int], end: str, dice: random.Random) -> None:
    """What a power failure may do to what was written and not synced: a journal ends, or is zero, from some byte on."""
    for journal in (memory / "journal").glob("*.wal"):
        found = journal.stat()
        # A journal that this process did not sync was durable before.
        durable = synced.get(found.st_ino, found.st_size)
        if durable < found.st_size:
            data, at = journal.read_bytes(), dice.randint(durable, found.st_size)
            journal.write_bytes(data[:at] + (bytes(found.st_size - at) if end == ZEROED else b""))


def interrupt(memories: Memories, verb: str, end: str, dice: random.Random) -> None:
    """One attempt that ends so at a random step, what has to hold then, and the same verb again."""
    known, memory = memories.undisturbed(verb), memories.place()
    shutil.copytree(known.before, memory)
    at, killed = dice.randint(1, known.steps), end not in (Fate.ERROR, Fate.FULL)
    fate = end if isinstance(end, Fate) else Fate.KILL
    about = f"{verb}, {end} at step {at} of {known.steps}"
    code, told = memories.act(verb, memory, Faults(fate, at))
    # Threads sync side by side, so that the last steps may be other ones, or one fewer.
    assert code == (KILLED if killed else 0) or (code == 0 and at > told.steps), about
    assert told.recovered_from in ("", "StorageError", "StorageFull"), about
    if killed:
        lose_unsynced(memory, told.synced, end, dice) if end in (TORN, ZEROED) else None
        # What was being done when it ended may have been done.
        allowed = known.states[told.acknowledged : told.acknowledged + 2]
        assert seen(memory) in allowed, about
    else:
        assert seen(memory) == known.states[-1], about
    report = Repository.open(memory).fsck()
    assert report.clean, (about, report.findings)
    assert memories.act(verb, memory, Faults())[0] == 0, about
    assert seen(memory) == known.states[-1], about
    assert Repository.open(memory).fsck().clean, about
    shutil.rmtree(memory)


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "number"), [(verb, number) for number, verb in enumerate(VERBS)])
def test_what_a_verb_does_is_done_or_not(memories: Memories, verb: str, number: int) -> None:
    dice = random.Random(verb)
    # A few of each: with all verbs, every end comes several times.
    for end in (Fate.KILL, ENDS[1 + number % 5], ENDS[1 + (number + 2) % 5]):
        interrupt(memories, verb, end, dice)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_hundred_times(memories: Memories) -> None:
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for verb, end in itertools.islice(itertools.cycle(itertools.product(VERBS, ENDS)), 200):
        interrupt(memories, verb, end, dice)
