"""The verbs that `test_crash_verbs` interrupts, one row each, and what a process does that is interrupted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megacontext.engine.bundle import Bundle
from megacontext.engine.erase import Eraser
from megacontext.engine.ingest import IngestConfig, ingest
from megacontext.engine.memory import Memory
from megacontext.engine.prune import prune, restore
from megacontext.engine.repack import repack
from megacontext.engine.sources import find_sources
from megacontext.engine.tokenizer_files import tokenizer_files
from megacontext.errors import MegaContextError, UnknownReference
from megacontext.storage import Repository
from megacontext.storage.garbage import collect
from megacontext.testing.faults import Faults

Tell = Callable[[], None]
SEGMENT_BLOCKS = 32
"""Small, so that a few thousand characters (a token each) seal segments."""


@dataclass(frozen=True, kw_only=True)
class Verb:
    """``act`` does it, wherever an interrupted attempt has left it, and calls ``tell`` after every acknowledgement; ``prepare``
    makes the memory ready for it."""

    act: Callable[[Memory, Tell], object]
    prepare: Callable[[Memory], object] = lambda memory: None


def text_of(name: str, characters: int) -> str:
    """Some text that is another one for each name."""
    words = [f"{name}{number * 7919 % 1009:03x} " for number in range(characters // 4)]
    return "".join(words)[:characters]


def there(memory: Memory, source: str, branch: str | None = None) -> bool:
    """Whether a live document has this source."""
    return any(record.source == source for record in memory.snapshot(branch).documents.live())


def add_long(memory: Memory, tell: Tell) -> None:
    """A document of 60 blocks in batches of 8, with commits in between: invisible until it is whole."""
    from megacontext.engine.sources import Text

    sources = find_sources([Text(name="long", text=text_of("long", 1900))])
    config = IngestConfig(batch_blocks=8, commit_blocks=16)
    ingest(memory.repository, memory.bundle.base, memory.bundle.gists, sources, config=config)
    tell()


def add_many(memory: Memory, tell: Tell) -> None:
    for number in range(4):
        memory.add(text=text_of(f"many{number}", 150), name=f"many{number}")
        tell()


TALK = np.arange(60, 60 + 3000, dtype=np.uint32) % 90 + 32


def talk(memory: Memory, tell: Tell) -> None:
    """A conversation on a branch without gists: tokens at any cut, some commits in between, segments sealed by them."""
    with memory.repository.writer("bare") as writer:
        done = writer.begin_document(source="talk", open=True, ingested_at=1.0).tokens
        tell()
        for at, cut in enumerate(range(done - done % 300, len(TALK), 300)):
            writer.append_tokens(TALK[max(cut, done) : cut + 300])
            writer.sync()
            tell()
            if at % 3 == 2:
                writer.commit("so far", time=2.0)
        writer.commit("all of it", time=3.0)
    tell()


def supersede(memory: Memory, tell: Tell) -> None:
    memory.add(text=text_of("edited anew", 700), name="edited")
    tell()


def remove(memory: Memory, tell: Tell) -> None:
    if there(memory, "text:gone"):
        memory.remove("text:gone")
    tell()


def remove_several(memory: Memory, tell: Tell) -> None:
    """All of them go at once."""
    if there(memory, "text:gone"):
        memory.remove("text:gone", "text:kept", "text:edited")
    tell()


def fork(memory: Memory) -> None:
    """`main` and `other` after they parted; the tags stand for what each had."""
    memory.branch("other")
    memory.checkout("other")
    memory.add(text=text_of("theirs", 1100), name="theirs")
    memory.add(text=text_of("edited there", 500), name="edited")
    memory.remove("text:gone")
    memory.checkout("main")
    memory.add(text=text_of("ours", 400), name="ours")


def merge(memory: Memory, tell: Tell) -> None:
    memory.merge("other")
    tell()


def revert(memory: Memory, tell: Tell) -> None:
    if there(memory, "text:reverted"):
        memory.revert("mistake")
    tell()


def mistake(memory: Memory) -> None:
    memory.add(text=text_of("reverted", 300), name="reverted")
    memory.tag("mistake")
    memory.add(text=text_of("later", 200), name="later")


def refs(memory: Memory, tell: Tell) -> None:
    repository = memory.repository
    for kind, names, make in (
        ("branch", repository.branches, memory.branch),
        ("tag", repository.tags, memory.tag),
    ):
        for number in range(3):
            if f"{kind}/{number}" not in names():
                make(f"{kind}/{number}")
            tell()
    if "bare" in repository.branches():
        repository.delete_branch("bare")
    tell()


def litter(memory: Memory) -> None:
    """Objects that nothing needs: those of a branch that is gone."""
    fork(memory)
    memory.repository.delete_branch("other")


def gc(memory: Memory, tell: Tell) -> None:
    collect(memory.repository.root, grace=0)
    tell()


def outdate(memory: Memory) -> None:
    """More dead blocks than live ones, on a branch that an old commit has a tag on."""
    memory.tag("old")
    for number in range(3):
        memory.add(text=text_of(f"kept {number}", 1400), name="kept")


def leave_out(memory: Memory, tell: Tell) -> None:
    repack(memory.repository, memory.bundle.base, memory.bundle.gists)
    tell()


def spread(memory: Memory) -> None:
    """A document that goes stands in two branches and a tag."""
    fork(memory)
    memory.tag("old", "other")
    memory.add(text=text_of("gone anew", 300), name="gone")


def erase(memory: Memory, tell: Tell) -> None:
    eraser = Eraser(memory.repository, lambda: memory.tokenizer, lambda: (memory.bundle.base, memory.bundle.gists))
    with suppress(UnknownReference):
        eraser.erase(eraser.outlook(["text:gone"]))
    tell()


def put_away(memory: Memory, tell: Tell) -> None:
    prune(memory.repository, ["text:kept"])
    tell()


def sealed(memory: Memory) -> None:
    """What is pruned lies before the end of the branch, which is still written."""
    memory.add(text=text_of("behind", 2200), name="behind")


def put_away_once(memory: Memory) -> None:
    sealed(memory)
    prune(memory.repository, ["text:kept"])


def bring_back(memory: Memory, tell: Tell) -> None:
    restore(memory.repository)
    tell()


VERBS = {
    "append one large": Verb(act=add_long),
    "append many": Verb(act=add_many),
    "append, seal and commit tokens": Verb(act=talk),
    "supersede": Verb(act=supersede),
    "remove": Verb(act=remove),
    "remove several": Verb(act=remove_several),
    "merge": Verb(act=merge, prepare=fork),
    "revert": Verb(act=revert, prepare=mistake),
    "move refs": Verb(act=refs),
    "repack": Verb(act=leave_out, prepare=outdate),
    "erase": Verb(act=erase, prepare=spread),
    "prune": Verb(act=put_away, prepare=sealed),
    "restore": Verb(act=bring_back, prepare=put_away_once),
    "gc": Verb(act=gc, prepare=litter),
}


def create(path: Path, bundle: Bundle) -> Memory:
    """A memory with small segments, three documents, and an empty branch `bare`."""
    repository = Repository.create(
        path,
        tokenizer=bundle.base.tokenizer_fingerprint,
        tokenizer_files=tokenizer_files(bundle.tokenizer),
        segment_blocks=SEGMENT_BLOCKS,
        created=1.0,
    )
    repository.create_branch("bare")
    memory = Memory(repository, bundle)
    for name, characters in (("kept", 1500), ("edited", 600), ("gone", 500)):
        memory.add(text=text_of(name, characters), name=name)
    return memory


def attempt(bundle: Bundle, path: Path, verb: str, log: Path, faults: Faults, keep: Path | None = None) -> None:
    """Does a verb under `faults`; what a process does that may be killed. What happens goes to the log, line by line; `keep`:
    where a copy of the memory goes after each acknowledgement."""
    lines = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    write, acknowledged = os.write, 0
    memory = Memory(Repository.open(path), bundle)

    def note(*words: object) -> None:
        write(lines, (" ".join(map(str, words)) + "\n").encode())

    def tell() -> None:
        nonlocal acknowledged
        acknowledged += 1
        note("acknowledged")
        if keep is not None:
            with faults.paused():
                shutil.copytree(path, keep / str(acknowledged))

    faults.synced = lambda inode, size: note("synced", inode, size)
    try:
        with faults.installed():
            VERBS[verb].act(memory, tell)
    except MegaContextError as error:
        if not faults.happened:
            raise
        # The disk is as it should be again, and the same process goes on.
        VERBS[verb].act(memory, lambda: None)
        note("recovered", type(error).__name__)
    note("steps", faults.count)
