"""Repacking a branch: what readers see before, after, and when it ends in the middle."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from storage_driver import OTHER, SPEC, Gister, add, check_layer, create, ids_of
from test_crash import Disk

from megacontext.core.timeline import Timeline
from megacontext.errors import InvalidInput, StorageFull
from megacontext.storage import Repository, Snapshot
from megacontext.storage.packing import Packing, region


def supersede(repository: Repository, gister: Gister, name: str, blocks: int, last: int = 32) -> None:
    """A new version of a document, with what the first one said gone."""
    ids, fill = ids_of(f"{name}{blocks}", blocks), np.full(blocks, 32, np.uint8)
    fill[-1] = last
    with repository.writer(layer=SPEC) as writer:
        before = [record for record in writer.snapshot().documents.live() if record.source == name]
        writer.begin_document(source=name, version=2, text_hash=f"{name}{blocks}")
        rows = np.arange(blocks) + 1
        writer.append_blocks(ids, fill, gists=gister.add(ids, fill), chars=rows * 10, lines=rows)
        writer.end_document(chars=blocks * 10, lines=blocks, replaces=before[0] if before else None)
        writer.commit(f"{name} anew", time=2.0)


def filled(path: Path) -> Repository:
    """Two segments that live, then versions of three documents, most of them dead, and a conversation behind them."""
    repository, gister = create(path), Gister()
    with repository.writer(layer=SPEC) as writer:
        add(writer, "base", 67, gister, last=5)
        writer.commit("base", time=1.0)
    layered = Gister(OTHER)
    with repository.add_layer(OTHER) as writer:
        ids, fill = writer.tokens.tokens(0, 67), writer.tokens.fill(0, 67)
        writer.append(67, layered.add(ids, fill))
        writer.commit("two layers", time=1.0)
    for blocks in (40, 9, 33, 20):
        supersede(repository, gister, "a", blocks)
        supersede(repository, gister, "b", blocks + 30, last=7)
    with repository.writer(layer=SPEC) as writer:
        writer.begin_document(source="chat", open=True, ingested_at=1.0)
        ids = np.arange(75, dtype=np.uint32)
        writer.append_tokens(ids, gists=gister.add(ids[:64].reshape(2, 32)))
        writer.commit("chat", time=2.0)
    return repository


def seen(snapshot: Snapshot) -> list[tuple[object, ...]]:
    """What a reader finds of every live document."""
    found: list[tuple[object, ...]] = []
    for record in snapshot.documents.live():
        blocks = np.arange(*record.span)
        rows = [snapshot.tokens_at(blocks), snapshot.fill_at(blocks), *snapshot.spans_at(blocks)]
        found.append((record.source, record.version, record.tokens, *(each.tobytes() for each in rows)))
    return [*found, ("open", snapshot.open_ids.tobytes())]


def repack(repository: Repository, *, everything: bool = False) -> str:
    with repository.repacker() as repacker:
        timeline = repacker.before.timeline()
        first = region(timeline, 32, everything=everything)
        assert first is not None
        gister = Gister()
        if first:
            gister.add(repacker.before.tokens(0, first), repacker.before.fill(0, first))
        return repacker.rewrite(
            first, layer=SPEC, make=lambda ids, fill, level_one: gister.add(ids, fill), message="packed", author="ada", time=3.0
        )


def test_what_lives_moves_together_and_the_rest_is_shared(tmp_path: Path) -> None:
    repository = filled(tmp_path / "m")
    before = repository.snapshot()
    name = repack(repository)
    after = repository.snapshot()
    assert seen(after) == seen(before) == seen(repository.snapshot(before.commit_name))
    assert after.timeline().dead == () and after.blocks == before.timeline().live_blocks
    assert after.segments()[:2] == before.segments()[:2]
    assert dict(after.layers) == {SPEC.fingerprint: after.blocks, OTHER.fingerprint: 64}
    expected = Gister()
    expected.add(after.tokens(0, after.blocks), after.fill(0, after.blocks))
    check_layer(after, expected)
    commit = repository.commit()
    assert (commit.parents, commit.message, commit.author, commit.dead) == ((before.commit_name,), "packed", "ada", "")
    assert [(each.ordinal, each.source) for each in after.documents] == [
        (each.ordinal, each.source) for each in before.documents
    ]
    alive = {each.ordinal for each in after.documents.live()}
    assert all((each.blocks > 0) == (each.ordinal in alive) for each in after.documents)
    assert repository.fsck().clean and name == repository.resolve()
    other = Gister(OTHER)
    other.add(after.tokens(0, 67), after.fill(0, 67))
    with repository.add_layer(OTHER) as writer:
        assert writer.blocks == 64 and writer.died == []
        rest = after.tokens(64, after.blocks), after.fill(64, after.blocks)
        again = Gister(OTHER)
        again.add(after.tokens(0, 64), after.fill(0, 64))
        writer.append(after.blocks - 64, again.add(*rest))
        writer.commit("both")
    check_layer(repository.snapshot(), again)
    assert repository.fsck().clean


def test_the_conversation_goes_on(tmp_path: Path) -> None:
    repository = filled(tmp_path / "m")
    repack(repository)
    gister = Gister()
    there = repository.snapshot()
    gister.add(there.tokens(0, there.blocks), there.fill(0, there.blocks))
    with repository.writer(layer=SPEC) as writer:
        resumed = writer.begin_document(source="chat", open=True)
        assert (resumed.tokens, resumed.blocks, resumed.open_ids.tolist()) == (75, 2, list(range(64, 75)))
        block = np.concatenate((np.arange(64, 75), np.arange(21))).astype(np.uint32)
        writer.append_tokens(block[11:], gists=gister.add(block[None]))
    supersede_later = repository.snapshot()
    assert supersede_later.blocks == there.blocks + 1
    check_layer(supersede_later, gister)


def test_a_layer_that_is_not_up_to_date_is_cut_or_refused(tmp_path: Path) -> None:
    repository = filled(tmp_path / "m")
    with repository.repacker() as repacker:
        before = repository.resolve()
        with pytest.raises(InvalidInput, match="not up to date"):
            repacker.rewrite(64, layer=OTHER, make=lambda ids, fill, level_one: {})
        for first in (33, 10**6 * 32, -32):
            with pytest.raises(InvalidInput, match="boundary"):
                repacker.rewrite(first)
        assert repository.resolve() == before
        repacker.rewrite(64)
    assert dict(repository.snapshot().layers) == {SPEC.fingerprint: 64, OTHER.fingerprint: 64}
    assert repository.fsck().clean


SPANS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 60)), max_size=8)


@given(spans=SPANS, blocks=st.integers(1, 300), first=st.integers(0, 9), everything=st.booleans())
def test_blocks_keep_their_order(spans: list[tuple[int, int]], blocks: int, first: int, everything: bool) -> None:
    timeline = Timeline(blocks=blocks)
    for start, length in spans:
        if start < min(start + length, blocks):
            timeline = timeline.kill(start, min(start + length, blocks))
    dead = timeline.dead_mask(np.zeros(blocks, np.int8), np.arange(blocks))
    packing = Packing(first * 32, blocks, timeline.dead)
    stays = ~dead | (np.arange(blocks) < first * 32)
    assert packing.blocks == stays.sum()
    np.testing.assert_array_equal(packing.places(np.arange(blocks + 1)), np.append(0, stays.cumsum()))
    start = region(timeline, 32, everything=everything)
    if everything:
        assert start == (int(dead.argmax()) // 32 * 32 if dead.any() else None)
        return
    rich = [at for at in range(0, blocks, 32) if 2 * dead[at:].sum() > blocks - at]
    assert (start is None) == (not rich)
    if start is not None:
        assert start >= rich[0] and dead[start : start + 32].any() and not dead[rich[0] : start].any()


class Crash:
    """Runs a change in a process that ends before its `n`th change of the disk."""

    def __init__(self, change: Callable[[Repository], object]) -> None:
        self._change = change

    def steps(self, memory: Path) -> int:
        """How many changes of the disk there are."""
        count = [0]
        self._run(memory, lambda: count.__setitem__(0, count[0] + 1))
        return count[0]

    def at(self, step: int, memory: Path) -> None:
        left = [step]

        def die() -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        child = os.fork()
        if child == 0:
            try:
                self._run(memory, die)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    def _run(self, memory: Path, step: Callable[[], None]) -> None:
        with pytest.MonkeyPatch.context() as patch, Disk(step).installed(patch):
            self._change(Repository.open(memory))


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.long), 25])
def test_killed_at_any_step_it_has_happened_or_not(quick_path: Path, every: int) -> None:
    memory = quick_path / "memory"
    expected = seen(filled(memory).snapshot())
    before = Repository.open(memory).resolve()
    crash = Crash(repack)
    shutil.copytree(memory, quick_path / "whole")
    steps = crash.steps(quick_path / "whole")
    final = Repository.open(quick_path / "whole").resolve()
    assert steps > 60
    states = []
    for step in range(0, steps, every):
        image = quick_path / "image"
        shutil.copytree(memory, image)
        crash.at(step, image)
        survivor = Repository.open(image)
        report = survivor.fsck()
        assert report.clean, (step, report.findings)
        assert seen(survivor.snapshot()) == expected
        states.append(survivor.resolve())
        assert states[-1] in (before, final)
        with survivor.writer(layer=SPEC) as writer:
            assert writer.document is not None and writer.document.tokens == 75
        if survivor.resolve() == before:
            assert repack(survivor) == final
        assert seen(survivor.snapshot()) == expected and survivor.fsck().notes == ()
        shutil.rmtree(image)
    assert states == sorted(states, key=[before, final].index)


def test_a_full_disk_changes_nothing(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = filled(quick_path / "m")
    before, expected = repository.resolve(), seen(repository.snapshot())
    steps = Crash(repack).steps(Path(shutil.copytree(quick_path / "m", quick_path / "copy")))
    for limit in range(0, steps, steps // 7):
        left = [limit]

        def full(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "no space")

        with Disk(full).installed(monkeypatch), suppress(StorageFull):
            repack(repository)
        if repository.resolve() != before:
            break
        assert seen(repository.snapshot()) == expected and repository.fsck().clean
    assert seen(repository.snapshot()) == expected and repository.fsck().clean
