"""What nothing needs is removed; what anything needs, or may be about to need, is not, whatever goes on meanwhile."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from storage_driver import SPEC, Gister, add, create, ids_of, say
from test_crash import Disk

from megacontext.errors import BranchLocked, CorruptObject, FormatVersionError, InvalidInput, MissingObject
from megacontext.storage import Repository, files
from megacontext.storage.garbage import collect
from megacontext.storage.hashing import sealed, unsealed
from megacontext.storage.place import local_store
from megacontext.testing.content import content_of


def objects(root: Path) -> set[str]:
    return set(local_store(root, "unused").names())


def contents(repository: Repository) -> dict[str, object]:
    return {name: content_of(repository.snapshot(name)) for name in (*repository.branches(), *repository.tags())}


def littered(path: Path, litter: int = 1) -> Repository:
    """A memory with a tag, a journal with an original, an open document, and deleted branches with a gist layer."""
    repository, gister = create(path), Gister()
    with repository.writer(layer=SPEC) as writer:
        add(writer, "a", 40, gister)
        writer.commit("one", time=2.0)
        repository.create_tag("v1")
        for number in range(litter):
            repository.create_branch("gone")
            with repository.writer("gone", layer=SPEC) as other:
                add(other, f"b{number}", 34, gister.copy())
                other.commit("lost", time=3.0)
            repository.delete_branch("gone")
        writer.begin_document(source="raw")
        ids = ids_of("raw", 1)
        writer.append_blocks(ids, gists=gister.add(ids))
        writer.end_document(original=b"\xff raw")
        writer.begin_document(source="chat", open=True)
        say(writer, np.arange(50, dtype=np.uint32), gister)
    return repository


def test_what_nothing_needs_goes_and_the_rest_stays(tmp_path: Path) -> None:
    repository = littered(tmp_path / "m")
    before, there, spare = contents(repository), objects(repository.root), repository.fsck().unreachable
    told = collect(repository.root, grace=0, dry_run=True)
    assert objects(repository.root) == there and not told.removed
    done = collect(repository.root, grace=0)
    left = objects(repository.root)
    assert done.removed and (done.kinds, done.objects, done.bytes) == (told.kinds, told.objects, told.bytes)
    assert done.objects == len(there - left) == spare and done.kept == len(left)
    trees = {"commit", "token-tree", "document-tree", "gist-tree"}
    assert done.kinds.keys() == trees | {"tokens", "spans", "gists", "inner", "documents"}
    assert contents(repository) == before and repository.fsck().clean
    assert repository.read_object(Repository.open(repository.root).snapshot().documents[1].original) == b"\xff raw"
    assert collect(repository.root, grace=0).objects == 0


def test_what_is_young_is_left(tmp_path: Path) -> None:
    repository = littered(tmp_path / "m")
    there = objects(repository.root)
    told = collect(repository.root)
    assert told.objects == 0 and told.young > 10 and objects(repository.root) == there
    time.sleep(0.05)
    assert collect(repository.root, grace=0.04).objects == told.young


def test_what_a_writer_takes_up_again_is_young_again(tmp_path: Path) -> None:
    """Garbage that the next commit consists of: it is not written a second time, so it has to stay."""
    repository = littered(tmp_path / "m")
    store = local_store(repository.root, "test")
    gone = objects(repository.root) - _needed(repository)
    time.sleep(1)
    taken = sorted(gone)[:3]
    for name in taken:
        assert store.put(store.get(name)) == name
    store.sync()
    assert collect(repository.root, grace=0.9).objects == len(gone) - 3
    assert all(store.has(name) for name in taken)


def _needed(repository: Repository) -> set[str]:
    copy = repository.root.with_name("copy")
    shutil.copytree(repository.root, copy)
    collect(copy, grace=0)
    return objects(copy)


def test_without_grace_nobody_may_write(tmp_path: Path) -> None:
    repository = littered(tmp_path / "m")
    there = objects(repository.root)
    with repository.writer("main", layer=SPEC):
        with pytest.raises(BranchLocked, match="main"):
            collect(repository.root, grace=0)
        assert collect(repository.root, grace=0, dry_run=True).objects > 0
        assert objects(repository.root) == there
        assert collect(repository.root, grace=0, held=["main"]).objects > 0
    assert repository.fsck().clean


def test_what_a_writer_put_down_out_of_sight_stays(tmp_path: Path) -> None:
    repository = littered(tmp_path / "m")
    repository.create_branch("side", at="v1")
    with repository.transaction("side") as change:
        with change.writer(None) as writer:
            add(writer, "big", 70)
            aside = writer.commit("aside", time=5.0)
            collect(repository.root, grace=0, held=["side"])
            assert repository.commit(aside).blocks == 110
        name = change.apply(aside, message="applied", time=6.0)
    assert repository.resolve("side") == name
    assert repository.fsck().clean


def test_a_running_writers_staging_is_its_own_and_a_dead_ones_is_cleared(tmp_path: Path) -> None:
    repository = littered(tmp_path / "m")
    staging = repository.root / "staging"
    for name in ("main", "dead"):
        (staging / name).mkdir(parents=True, exist_ok=True)
        (staging / name / "half").write_bytes(b"half")
    with repository.writer("main", layer=SPEC):
        (staging / "main").mkdir(exist_ok=True)
        (staging / "main" / "half").write_bytes(b"half")
        assert collect(repository.root, dry_run=True).leftovers == 1
        assert collect(repository.root).leftovers == 1
        assert (staging / "main" / "half").exists() and not (staging / "dead").exists()


def test_where_it_cannot_be_told_what_is_needed_nothing_is_removed(tmp_path: Path) -> None:
    repository = littered(tmp_path / "m")
    root = repository.root
    there = objects(root)
    tree = repository.commit().tokens
    path = root / "objects" / tree[:2] / tree
    data = path.read_bytes()
    for damage, error in ((None, MissingObject), (b"{}", CorruptObject)):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(error, match=tree):
            collect(root, grace=0)
        path.write_bytes(data)
    for part in ("refs/tags/v1", "journal/main.wal"):
        whole = (root / part).read_bytes()
        (root / part).write_bytes(whole.replace(whole[20:24], b"????", 1))
        with pytest.raises(CorruptObject, match=Path(part).name):
            collect(root, grace=0)
        (root / part).write_bytes(whole)
    assert objects(root) == there


def test_a_branch_that_comes_between_the_looks_keeps_its_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch is put on garbage while the collector is already at work."""
    repository = littered(tmp_path / "m")
    garbage = next(name for name in objects(repository.root) if _is_lost(repository, name))
    real, done = type(local_store(repository.root, "x")).peek, []

    def peek(store: object, name: str, size: int) -> bytes:
        if not done:
            done.append(repository.create_branch("saved", at=garbage))
        return real(store, name, size)

    monkeypatch.setattr(type(local_store(repository.root, "x")), "peek", peek)
    collect(repository.root, grace=1e-9)
    assert done == [garbage] and repository.snapshot("saved").documents[1].source == "b0"
    assert repository.fsck().clean
    with pytest.raises(InvalidInput):
        collect(repository.root, grace=-1)


def _is_lost(repository: Repository, name: str) -> bool:
    return b'"message":"lost"' in repository.read_object(name)


def test_a_memory_of_an_earlier_format_is_only_looked_at(tmp_path: Path) -> None:
    repository = littered(tmp_path / "m")
    path = repository.root / "megacontext.json"
    path.write_bytes(sealed({**unsealed(path.read_bytes()), "format": 1}))
    with pytest.raises(FormatVersionError, match="migrate"):
        collect(repository.root, grace=0)
    assert collect(repository.root, grace=0, dry_run=True).objects > 0


def test_writers_and_collectors_at_once(tmp_path: Path) -> None:
    """Commits that consist of garbage of a moment ago, while collectors go round without rest."""
    repository = littered(tmp_path / "m")
    stop, errors, removed = threading.Event(), [], []

    def sweep() -> None:
        while not stop.is_set():
            try:
                removed.append(collect(repository.root, grace=1.5).objects)
            except Exception as error:
                errors.append(error)

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    for sweeper in sweepers:
        sweeper.start()
    until = time.monotonic() + 2.5
    rounds = 0
    while time.monotonic() < until or sum(removed) == 0:
        rounds += 1
        repository.create_branch("again", at="v1")
        with repository.writer("again", layer=SPEC) as writer:
            gister = Gister()
            gister.add(ids_of("a", 40))
            add(writer, "same", 34, gister)
            writer.commit("the same each time", time=9.0)
        assert repository.snapshot("again").tokens(0, 74).shape == (74, 32)
        repository.delete_branch("again")
    stop.set()
    for sweeper in sweepers:
        sweeper.join()
    assert errors == [] and sum(removed) > 0 and rounds > 1
    assert repository.fsck().clean


def test_a_crash_at_any_step_leaves_all_that_is_needed(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = littered(quick_path / "m")
    expected, there = contents(repository), objects(repository.root)
    images: list[Path] = []

    def crash() -> None:
        images.append(quick_path / f"image{len(images)}")
        shutil.copytree(repository.root, images[-1])

    with Disk(crash).installed(monkeypatch):
        done = collect(repository.root, grace=0)
    assert len(images) > done.objects > 0
    for image in images[:: max(len(images) // 12, 1)]:
        survivor = Repository.open(image)
        assert contents(survivor) == expected and survivor.fsck().clean
        collect(image, grace=0)
        assert objects(image) == objects(repository.root) < there


SCRIPT = """
import sys
from pathlib import Path
from megacontext.storage.garbage import collect
print("begun", flush=True)
collect(Path(sys.argv[1]), grace=0)
print("done", flush=True)
"""


@pytest.mark.slow
def test_kill_9_in_the_collector(tmp_path: Path) -> None:
    repository = littered(tmp_path / "m", litter=30)
    expected, kept = contents(repository), _needed(repository)
    random, kills = np.random.default_rng(int(time.time())), 0
    while objects(repository.root) != kept:
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(repository.root)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        if kills < 8:
            # Early ones first: on a quick machine a late one finds nothing left to do.
            time.sleep(float(random.random()) * 0.03 * (kills + 1))
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        assert kept <= objects(repository.root)
        assert contents(repository) == expected
        assert repository.fsck().clean
    assert kills


def test_a_collector_that_looks_at_a_branch_does_not_stop_its_writer(tmp_path: Path) -> None:
    repository = littered(tmp_path / "m")
    lock = files.FileLock(repository.root / "locks" / "main")
    lock.acquire(wait=False, what="main")
    timer = threading.Timer(0.1, lock.release)
    timer.start()
    with repository.writer("main", layer=SPEC) as writer:
        assert writer.branch == "main"
    timer.join()
