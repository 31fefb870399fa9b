"""Crashes: the process killed, or the power lost, between any two steps that change the disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from storage_driver import SPEC, Gister, create, ids_of, roots, say

from megacontext.errors import MemoryNotFound
from megacontext.storage import BranchWriter, Repository

PLAN = (("a", 5), ("b", 40), ("c", 3))
COMMIT_AFTER = ("b", "chat")
CHAT = np.arange(45, dtype=np.uint32)
State = tuple[tuple[str, bytes], ...]


def seen(repository: Repository) -> State:
    """What a reader sees: each document's name and tokens."""
    snapshot = repository.snapshot()
    documents = []
    for record in snapshot.documents:
        ids = snapshot.tokens(record.start_block, record.start_block + record.blocks).ravel()
        if record.open:
            ids = np.concatenate((ids, snapshot.open_ids))
        documents.append((record.source, ids[: record.tokens].tobytes()))
    return tuple(documents)


def ingest(repository: Repository, on_step: Callable[[], None] = lambda: None, *, cut: int = 17) -> None:
    """Brings the memory to the planned content from wherever it is; `on_step` is called after each acknowledgement."""
    gister = Gister()
    with repository.writer(layer=SPEC) as writer:
        visible = {record.source: record for record in writer.snapshot().documents}
        for source, blocks in PLAN:
            ids = ids_of(source, blocks)
            done = blocks if source in visible else 0
            if source not in visible:
                done = writer.begin_document(source=source, text_hash=source, ingested_at=1.0).blocks
                on_step()
            gister.add(ids[:done])
            for at in range(done, blocks, cut):
                part = ids[at : at + cut]
                writer.append_blocks(part, gists=gister.add(part))
                writer.sync()
                on_step()
                if source == "b":
                    writer.commit("half of a document", time=2.0)
                    on_step()
            if source not in visible:
                writer.end_document(chars=1, lines=1, original=b"raw" if source == "c" else None)
                writer.sync()
                on_step()
        chat(writer, gister, on_step)
        writer.commit("end", time=3.0)
        on_step()


def chat(writer: BranchWriter, gister: Gister, on_step: Callable[[], None]) -> None:
    done = writer.begin_document(source="chat", open=True, ingested_at=1.0).tokens
    on_step()
    gister.add(CHAT[: done // 32 * 32].reshape(-1, 32))
    while done < len(CHAT):
        say(writer, CHAT[done : done + 20], gister)
        done += 20
        on_step()


def undisturbed(path: Path) -> Repository:
    repository = create(path)
    ingest(repository)
    return repository


class Disk:
    """Stands between the package and the disk, and calls `before_step` before every change of it. Knows what a power
    loss would leave in the worst case: only what was synced, file contents and folder entries each for themselves."""

    def __init__(self, before_step: Callable[[], None]) -> None:
        self._examine = before_step
        self._examining = False
        self._half_written: set[int] = set()
        self.contents: dict[int, bytes] = {}
        self.entries: dict[int, dict[str, int]] = {}
        self.kinds: dict[int, bool] = {}
        self._held: list[int] = []

    def before_step(self) -> None:
        """Not for the steps that the examination itself takes."""
        if not self._examining:
            self._examining = True
            self._examine()
            self._examining = False

    @contextmanager
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        real = {name: getattr(os, name) for name in ("write", "replace", "unlink", "ftruncate", "mkdir", "fsync", "fdatasync")}

        def step(name: str) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                self.before_step()
                return real[name](*arguments, **options)

            return call

        def write(descriptor: int, data: memoryview) -> int:
            self.before_step()
            # In two parts, so that a crash within a write is among the steps.
            if descriptor in self._half_written or len(data) < 2:
                self._half_written.discard(descriptor)
                return int(real["write"](descriptor, data))
            self._half_written.add(descriptor)
            return int(real["write"](descriptor, data[: len(data) // 2]))

        def sync(descriptor: int) -> None:
            self.before_step()
            self.note_sync(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "ftruncate", "mkdir"):
                patch.setattr(os, name, step(name))
            patch.setattr(os, "write", write)
            patch.setattr(os, "fsync", sync)
            patch.setattr(os, "fdatasync", sync)
            # One by one, so that the steps have an order.
            patch.setattr("megacontext.storage.files.sync_all", lambda paths, one: [one(path) for path in list(paths)])
            yield
        for descriptor in self._held:
            os.close(descriptor)

    def note_sync(self, path: Path) -> None:
        number = self._number(path)
        if path.is_dir():
            self.entries[number] = {entry.name: self._number(entry) for entry in path.iterdir()}
        else:
            self.contents[number] = path.read_bytes()

    def _number(self, path: Path) -> int:
        """The file's inode, held open so that the number is not given to another file."""
        number = path.stat().st_ino
        if number not in self.kinds:
            self.kinds[number] = path.is_dir()
            self._held.append(os.open(path, os.O_RDONLY))
        return number

    def after_power_loss(self, source: Path, target: Path) -> None:
        """Writes what is left of `source`: synced entries with synced contents."""
        self._rebuild(source.stat().st_ino, target)

    def _rebuild(self, number: int, target: Path) -> None:
        target.mkdir()
        for name, inode in self.entries.get(number, {}).items():
            if self.kinds[inode]:
                self._rebuild(inode, target / name)
            else:
                (target / name).write_bytes(self.contents.get(inode, b""))

    def with_renames(self, source: Path, target: Path) -> None:
        """As when the journal of the file system got ahead of the data: all entries, only synced contents."""
        shutil.copytree(source, target)
        for path in source.rglob("*"):
            if path.is_file() and path.stat().st_ino not in self.contents:
                (target / path.relative_to(source)).write_bytes(b"")
            elif path.is_file():
                (target / path.relative_to(source)).write_bytes(self.contents[path.stat().st_ino])


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["killed", "power lost", "renames ahead of data"])
def test_a_crash_at_any_step_leaves_the_last_acknowledged_state(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    memory, image = quick_path / "memory", quick_path / "image"
    expected = undisturbed(quick_path / "undisturbed")
    final = roots(expected)
    acknowledged: list[State | None] = [None]
    checked: set[bytes] = set()
    images: list[tuple[Path, State | None]] = []

    def crash() -> None:
        """Keeps the image if it differs from all before; it is examined when the run is over."""
        if not memory.exists():
            return
        copy = quick_path / f"image{len(images)}"
        if fate == "killed":
            shutil.copytree(memory, copy)
        elif fate == "power lost":
            disk.after_power_loss(memory, copy)
        else:
            disk.with_renames(memory, copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file() and path.parent.name not in ("locks", "staging"))
        content = b"".join(str(path.relative_to(copy)).encode() + path.read_bytes() for path in files)
        if content in checked:
            shutil.rmtree(copy)
        else:
            checked.add(content)
            images.append((copy, acknowledged[-1]))

    disk = Disk(crash)
    with disk.installed(monkeypatch):
        repository = create(memory)
        acknowledged.append(seen(repository))
        ingest(repository, lambda: acknowledged.append(seen(repository)))
    states = list(acknowledged[1:])
    assert len(images) > 20

    for number, (image, least) in enumerate(images):
        if least is None:
            try:
                Repository.open(image)
            except MemoryNotFound:
                shutil.copytree(image, image.with_suffix(".again"))
                create(image.with_suffix(".again"))
                continue
        survivor = Repository.open(image)
        found = seen(survivor)
        assert found in states[states.index(least) if least is not None else 0 :], image
        report = survivor.fsck()
        assert report.clean, (image, report.findings)
        if number % 3 == 0:
            ingest(survivor)
            assert roots(survivor) == final and seen(survivor) == seen(expected)
            assert survivor.fsck().clean


def test_a_journal_cut_at_any_byte_is_recovered(tmp_path: Path) -> None:
    """Every prefix of what was being written opens as a state that was there, and is brought to the same end."""
    memory = tmp_path / "memory"
    repository = create(memory)
    states: list[State] = [seen(repository)]
    gister = Gister()
    with repository.writer(layer=SPEC) as writer:
        chat(writer, gister, lambda: states.append(seen(repository)))
    path = memory / "journal/main.wal"
    data = path.read_bytes()
    last = 0
    for size in range(44, len(data) + 1):
        path.write_bytes(data[:size])
        now = states.index(seen(repository))
        assert now >= last
        last = now
    assert last == len(states) - 1


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from megacontext.storage import Repository
from test_crash import ingest
def step():
    print("acknowledged", flush=True)
ingest(Repository.open({memory!r}), step, cut=1)
print("done", flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    repository = create(memory)
    expected = undisturbed(tmp_path / "undisturbed")
    script = SCRIPT.format(paths=[str(Path(__file__).parent)], memory=str(memory))
    random = np.random.default_rng(int(time.time()))
    done, kills = False, 0
    for _ in range(30):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        before = blocks_there(repository)
        wait, steps = int(random.integers(1, 15)) if kills < 6 else 10**6, 0
        for line in process.stdout:
            steps += line.startswith("acknowledged")
            done = done or line.startswith("done")
            if steps >= wait:
                time.sleep(float(random.random()) * 0.01)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
        process.stdout.close()
        process.wait()
        assert blocks_there(repository) >= before
        report = repository.fsck()
        assert report.clean, report.findings
        if done:
            break
    assert done and kills >= 3
    assert roots(repository) == roots(expected)
    assert seen(repository) == seen(expected)


def blocks_there(repository: Repository) -> int:
    """Blocks on the disk, those of an unfinished document included."""
    with repository.writer(layer=SPEC) as writer:
        return writer.blocks
