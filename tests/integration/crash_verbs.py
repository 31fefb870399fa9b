"""The verbs that `test_crash_verbs` interrupts, one row each, and the nursery: a process that has loaded everything, and in
which each attempt is a child of its own that may be killed.

As a program: `python crash_verbs.py BUNDLE` reads one JSON object a line, such as
`{"verb": "merge", "memory": …, "log": …, "fate": "kill", "at": 17}`, and answers each with the child's exit code.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megacontext.engine.bundle import Bundle, load_bundle
from megacontext.engine.ingest import IngestConfig, ingest
from megacontext.engine.memory import Memory
from megacontext.engine.sources import find_sources
from megacontext.engine.tokenizer_files import tokenizer_files
from megacontext.errors import MegaContextError
from megacontext.storage import Repository
from megacontext.storage.garbage import collect
from megacontext.testing.faults import Fate, Faults

Tell = Callable[[], None]
SEGMENT_BLOCKS = 32
"""Small, so that a few thousand characters (a token each) seal segments."""


@dataclass(frozen=True, kw_only=True)
class Verb:
    """``act`` does it, wherever an interrupted attempt has left it, and calls ``tell`` after every acknowledgement; ``prepare``
    makes the memory ready for it. ``steady``: what a reader sees does not change at all."""

    act: Callable[[Memory, Tell], object]
    prepare: Callable[[Memory], object] = lambda memory: None
    steady: bool = False


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


VERBS = {
    "append one large": Verb(act=add_long),
    "append many": Verb(act=add_many),
    "append, seal and commit tokens": Verb(act=talk),
    "supersede": Verb(act=supersede),
    "remove": Verb(act=remove),
    "merge": Verb(act=merge, prepare=fork),
    "revert": Verb(act=revert, prepare=mistake),
    "move refs": Verb(act=refs),
    "gc": Verb(act=gc, prepare=litter, steady=True),
}


def create(path: Path, bundle: Bundle, folder: Path) -> Memory:
    """A memory with small segments, three documents, and an empty branch `bare`."""
    repository = Repository.create(
        path,
        tokenizer=bundle.base.tokenizer_fingerprint,
        model=str(folder),
        tokenizer_files=tokenizer_files(bundle.tokenizer),
        segment_blocks=SEGMENT_BLOCKS,
        created=1.0,
    )
    repository.create_branch("bare")
    memory = Memory(repository, bundle)
    for name, characters in (("kept", 1500), ("edited", 600), ("gone", 500)):
        memory.add(text=text_of(name, characters), name=name)
    return memory


def attempt(bundle: Bundle, folder: Path, order: dict[str, Any]) -> int:
    """One child's work; its exit code. What happened goes to the log, line by line."""
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    note, verb, path = os.write, VERBS[order["verb"]], Path(order["memory"])
    if order.get("prepare"):
        verb.prepare(create(path, bundle, folder))
        return 0
    memory = Memory(Repository.open(path), bundle)
    acknowledged = 0

    def tell() -> None:
        nonlocal acknowledged
        acknowledged += 1
        note(log, b"acknowledged\n")
        if order.get("keep"):
            with faults.paused():
                shutil.copytree(path, Path(order["keep"]) / str(acknowledged))

    faults = Faults(
        Fate(order["fate"]), order["at"], synced=lambda inode, size: note(log, f"synced {inode} {size}\n".encode()) and None
    )
    try:
        with faults.installed():
            verb.act(memory, tell)
    except MegaContextError as error:
        note(log, f"failed {type(error).__name__}\n".encode())
        if not faults.happened:
            raise
        # The disk is as it should be again, and the same process goes on.
        verb.act(memory, lambda: None)
        note(log, b"recovered\n")
    note(log, f"steps {faults.count}\n".encode())
    return 0


def main(folder: Path) -> None:
    """Children one after the other, as they are ordered."""
    import torch

    torch.set_num_threads(1)
    bundle = load_bundle(folder)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = attempt(bundle, folder, json.loads(line))
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
