"""Erasing at the level of objects: crashes at any step, what is in the way, and what a scan that sees nothing is worth."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megacontext.errors import BranchLocked, EraseIncomplete, InvariantError, MissingObject, UnknownReference
from megacontext.storage import Repository, audit
from megacontext.storage.erased import load_erased
from megacontext.storage.erasure import erase as module
from megacontext.storage.erasure.doomed import Doomed
from megacontext.storage.erasure.erase import Order, erase
from megacontext.storage.erasure.finish import finish
from megacontext.storage.erasure.needles import Finder
from megacontext.storage.place import ERASING
from megacontext.testing.faults import Fate, Faults, Stopped

ORDER = Order(doomed=Doomed(sources=frozenset({"file:gone"})), remake=lambda spec: None, author="me")
GONE = np.arange(70_000, 70_000 + 96, dtype=np.uint32).reshape(3, 32)


def write(repository: Repository, source: str, ids: np.ndarray, branch: str = "main", commit: bool = True) -> None:
    with repository.writer(branch) as writer:
        writer.begin_document(source=source, text_hash=f"hash of {source}", ingested_at=1.0)
        writer.append_blocks(ids)
        writer.end_document(original=f"the text of {source}".encode())
        if commit:
            writer.commit(f"Add {source}", "me", time=2.0)


def built(root: Path) -> Repository:
    """Two branches, a tag, and a journal with something in it."""
    repository = Repository.create(root, segment_blocks=32, created=1.0)
    write(repository, "file:first", np.full((20, 32), 7, np.uint32))
    write(repository, "file:gone", GONE)
    repository.create_tag("then")
    repository.create_branch("other")
    write(repository, "file:more", np.full((30, 32), 8, np.uint32), "other")
    write(repository, "file:last", np.full((4, 32), 9, np.uint32), commit=False)
    return repository


def traces(root: Path) -> list[str]:
    """Files with anything of the document."""
    needles = (b"file:gone", GONE[1].tobytes())
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return [path.relative_to(root).as_posix() for path in paths if any(each in path.read_bytes() for each in needles)]


def texts(repository: Repository) -> dict[tuple[str, str], bytes]:
    return {
        (ref, record.source): repository.snapshot(ref).tokens(*record.span).tobytes()
        for ref in (*repository.branches(), *repository.tags())
        for record in repository.snapshot(ref).documents
        if record.source not in ("", "file:gone")
    }


def is_done(root: Path, kept: dict[tuple[str, str], bytes]) -> None:
    repository = Repository.open(root)
    assert not (root / ERASING).exists()
    assert traces(root) == []
    assert repository.fsck().clean, repository.fsck().findings
    assert texts(repository) == kept
    assert [entry.act for entry in audit.read(root).entries] == ["erase"]
    assert load_erased(root).reason("file:gone") and load_erased(root).reason("x", "hash of file:gone")


def steps_of(template: Path, tmp_path: Path) -> int:
    shutil.copytree(template, tmp_path / "counted")
    with Faults().installed() as faults:
        erase(tmp_path / "counted", ORDER)
    return faults.count


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template") / "m.mc"
    built(root)
    return root


def crash_and_recover(template: Path, root: Path, at: int) -> None:
    shutil.copytree(template, root)
    kept = texts(Repository.open(root))
    with pytest.raises(Stopped), Faults(Fate.STOP, at).installed():
        erase(root, ORDER)
    begun = (root / ERASING).exists()
    after = Repository.open(root)  # carries out what has begun
    assert after.fsck().clean, (at, after.fsck().findings)
    if not begun and traces(root):
        assert {ref: "file:gone" in {r.source for r in after.snapshot(ref).documents} for ref in ("main", "other", "then")} == {
            ref: True for ref in ("main", "other", "then")
        }
        assert texts(after) == kept
        erase(root, ORDER)
    is_done(root, kept)


def test_a_crash_at_any_of_some_steps(template: Path, tmp_path: Path) -> None:
    total = steps_of(template, tmp_path)
    # Names of objects differ from run to run, and with them how many folders are made: the last steps may not be there.
    for at in np.linspace(1, 0.9 * total, 6).astype(int).tolist():
        crash_and_recover(template, tmp_path / f"m{at}", at)


@pytest.mark.long
def test_a_crash_at_every_step(template: Path, tmp_path: Path) -> None:
    for at in range(1, int(0.95 * steps_of(template, tmp_path))):
        crash_and_recover(template, tmp_path / f"m{at}", at)
        shutil.rmtree(tmp_path / f"m{at}")


def killed(root: Path, at: int) -> None:
    """A process that erases, killed at a step."""
    pid = os.fork()
    if pid == 0:
        with Faults(Fate.KILL, at).installed():
            erase(root, ORDER)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, -signal.SIGKILL)


@pytest.mark.parametrize("part", [0.6, 0.9])
def test_kill_minus_nine(template: Path, tmp_path: Path, part: float) -> None:
    total = steps_of(template, tmp_path)
    root = tmp_path / "m.mc"
    shutil.copytree(template, root)
    kept = texts(Repository.open(root))
    killed(root, int(total * part))
    if traces(root) and not (root / ERASING).exists():
        erase(root, ORDER)
    is_done(root, kept)


def test_nobody_writes_between_crash_and_end(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "m.mc"
    shutil.copytree(template, root)
    repository = Repository.open(root)
    with monkeypatch.context() as patch:
        patch.setattr(module, "finish", _no_step(finish))
        with pytest.raises(KeyboardInterrupt):
            erase(root, ORDER)
    with pytest.raises(BranchLocked, match="--finish"), repository.writer():
        pass
    kept = texts(repository)
    assert Repository.open(root).fsck().clean
    is_done(root, kept)


def _no_step(real: Callable[[Path], object]) -> Callable[[Path], object]:
    """The first call is real; at the second the user has had enough."""
    calls: list[Path] = []

    def step(root: Path) -> object:
        calls.append(root)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(root)

    return step


def test_what_is_left_is_told_and_can_be_finished(template: Path, tmp_path: Path) -> None:
    root = tmp_path / "m.mc"
    shutil.copytree(template, root)
    stray = root / "journal" / "copy"
    stray.write_bytes(b"somebody's copy: " + GONE[2].tobytes())
    with pytest.raises(EraseIncomplete, match="journal/copy") as told:
        erase(root, ORDER)
    assert "file:gone" not in str(told.value)
    assert (root / ERASING).exists() and not audit.read(root).entries
    Repository.open(root)  # for reading, it can be opened all the same
    stray.unlink()
    receipt = finish(root)
    assert receipt is not None and receipt["documents"] == 1
    assert audit.read(root).entries[0].details == receipt


def test_a_scan_that_sees_nothing_erases_nothing(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "m.mc"
    shutil.copytree(template, root)
    before = Repository.open(root).resolve("then")
    monkeypatch.setattr(Finder, "find_in_file", lambda self, path: {})
    with pytest.raises(InvariantError, match="prove nothing"):
        erase(root, ORDER)
    monkeypatch.undo()
    assert traces(root) and Repository.open(root).resolve("then") == before
    assert not list((root / "staging").glob("*/*"))


def test_what_is_not_there_is_refused(template: Path, tmp_path: Path) -> None:
    root = tmp_path / "m.mc"
    shutil.copytree(template, root)
    with pytest.raises(UnknownReference):
        erase(root, Order(doomed=Doomed(sources=frozenset({"file:none"})), remake=lambda spec: None))


def test_a_damaged_memory_is_left_alone(template: Path, tmp_path: Path) -> None:
    root = tmp_path / "m.mc"
    shutil.copytree(template, root)
    repository = Repository.open(root)
    state, first = repository.resolve("then"), [name for name, _ in repository.history("main")][-1]
    os.unlink(root / "objects" / first[:2] / first)
    with pytest.raises(MissingObject):
        erase(root, ORDER)
    assert Repository.open(root).resolve("then") == state


def test_a_damaged_note_stands_in_the_way_of_writing_only(template: Path, tmp_path: Path) -> None:
    root = tmp_path / "m.mc"
    shutil.copytree(template, root)
    (root / ERASING).write_bytes(b"x" * 100)
    repository = Repository.open(root)
    assert len(repository.snapshot().documents) == 3
    assert [finding.kind for finding in repository.fsck().findings] == ["erasure"]
    with pytest.raises(BranchLocked), repository.writer():
        pass
    (root / ERASING).unlink()
    erase(root, ORDER)
    is_done(root, texts(repository))
