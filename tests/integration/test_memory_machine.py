"""A memory against dictionaries: whatever is added, superseded, removed, labelled, branched, merged, reverted, repacked,
pruned, restored, exported, imported and erased, with crashes anywhere, every branch, tag and old commit holds what the model
says.

What is pruned is read in its archive; read as usual, it is refused or right. What is labelled is not there for a reader that is
denied it.

A new verb is one rule of one line: `self.change(what is done, what the branch then holds, crash)`.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from crash_verbs import SEGMENT_BLOCKS, text_of
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from megacontext.engine.bundle import Bundle, load_bundle
from megacontext.engine.erase import Eraser, remaker
from megacontext.engine.gist_builder import GistBuilder
from megacontext.engine.memory import Memory
from megacontext.engine.repack import repack
from megacontext.engine.tokenizer_files import tokenizer_files
from megacontext.errors import DetailPruned
from megacontext.storage import Repository, Snapshot, audit
from megacontext.storage.export import prepare_export
from megacontext.storage.garbage import collect
from megacontext.storage.importing import import_archive
from megacontext.testing.faults import Fate, Faults, Stopped
from megacontext.testing.tiny_bundle import save_tiny_bundle

LONG = bool(os.environ.get("MEGACONTEXT_LONG_TESTS"))
Texts = dict[str, str]
"""By name, the texts of the documents that are there."""
# Most steps are not interrupted; the others at a step that they may have or not.
CRASH = st.one_of(st.just(0), st.just(0), st.integers(1, 120))
NAMES = st.sampled_from("abcdef")


class MemoryMachine(RuleBasedStateMachine):
    bundle: Bundle  # the models, loaded once for all examples

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        self.erased: set[str] = set()
        self.labelled: dict[str, set[str]] = {}  # by branch, the documents that are labelled for sure
        self.saved: tuple[bytes, dict[str, Texts]] | None = None  # an archive, and what its branches held
        self.memory: Memory | None = None

    @initialize()
    def start(self) -> None:
        repository = Repository.create(
            self.folder / "m",
            tokenizer=self.bundle.base.tokenizer_fingerprint,
            tokenizer_files=tokenizer_files(self.bundle.tokenizer),
            segment_blocks=SEGMENT_BLOCKS,
        )
        self.memory = Memory(repository, self.bundle)
        self.branches: dict[str, Texts] = {"main": {}}
        self.tags: dict[str, Texts] = {}
        self.past: dict[str, Texts] = {repository.resolve(): {}}

    @property
    def opened(self) -> Memory:
        assert self.memory is not None
        return self.memory

    @property
    def here(self) -> str:
        return self.opened.repository.head

    @property
    def now(self) -> Texts:
        return self.branches[self.here]

    # -- how a change is made ------------------------------------------------------------------

    def change(self, act: Callable[[], object], after: Texts, crash: int) -> None:
        """Does something to the current branch, which then holds `after`, or, if it is interrupted, what it held before."""
        either = self.now, after
        if self.interrupted(act, crash):
            after = held(self.opened, self.here)
            assert after in either, f"{after} is neither of {either}"
        self.branches[self.here] = after
        self.remember(*either)

    def remember(self, *either: Texts) -> None:
        """Notes what the branch's last commit holds: what it should, or, as long as the rest is in the journal, what it did."""
        commit = self.opened.repository.resolve()
        if commit not in self.past:
            self.past[commit] = held(self.opened, commit)
            assert self.past[commit] in either

    def interrupted(self, act: Callable[[], object], crash: int) -> bool:
        """Does something, and lets it end at step `crash`, if that is not 0; whether it did."""
        faults = Faults(Fate.STOP, crash)
        try:
            with faults.installed():
                act()
        except Stopped:
            self.reopen()
            return True
        return False

    # -- rules ---------------------------------------------------------------------------------

    @rule(name=NAMES, version=st.integers(0, 3), crash=CRASH)
    def add_or_supersede(self, name: str, version: int, crash: int) -> None:
        if name not in self.erased:
            text = text_of(f"{name}{version}", 20 + 400 * (version % 3))
            self.change(lambda: self.opened.add(text=text, name=name), {**self.now, name: text}, crash)

    @precondition(lambda self: self.now)
    @rule(data=st.data(), crash=CRASH)
    def remove(self, data: st.DataObject, crash: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.now)))
        self.change(lambda: self.opened.remove(f"text:{name}"), without(self.now, name), crash)
        self.labelled.get(self.here, set()).discard(name)

    @precondition(lambda self: len(self.branches) > 1)
    @rule(data=st.data(), crash=CRASH)
    def merge(self, data: st.DataObject, crash: int) -> None:
        other = data.draw(st.sampled_from(sorted(set(self.branches) - {self.here})))
        repository = self.opened.repository
        bases = repository.merge_bases(repository.resolve(self.here), repository.resolve(other))
        if len(bases) == 1:
            after = three_way(self.past[bases[0]], self.now, self.branches[other])
            self.change(lambda: self.opened.merge(other, choice="theirs"), after, crash)
            self.labelled[self.here] = self.labelled.get(self.here, set()) & self.now.keys()

    @rule(crash=CRASH)
    def repack(self, crash: int) -> None:
        parts = self.opened.repository, self.bundle.base, self.bundle.gists
        self.change(lambda: repack(*parts, everything=True), self.now, crash)

    @precondition(lambda self: self.now)
    @rule(data=st.data(), crash=CRASH)
    def prune(self, data: st.DataObject, crash: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.now)))
        before = self.refused()
        self.change(lambda: self.opened.prune(f"text:{name}"), self.now, crash)
        assert before <= self.refused() <= before | {name} and (crash or name in self.refused())

    @rule(data=st.data(), everything=st.booleans(), crash=CRASH)
    def restore(self, data: st.DataObject, everything: bool, crash: int) -> None:
        names = [] if everything or not self.now else [f"text:{data.draw(st.sampled_from(sorted(self.now)))}"]
        before = self.refused()
        self.change(lambda: self.opened.restore(*names), self.now, crash)
        asked = {name.removeprefix("text:") for name in names} or self.now.keys()
        assert self.refused() <= before and (crash or not self.refused() & asked)

    @precondition(lambda self: self.now)
    @rule(data=st.data(), on=st.booleans(), crash=CRASH)
    def label(self, data: st.DataObject, on: bool, crash: int) -> None:
        name, known = data.draw(st.sampled_from(sorted(self.now))), self.labelled.setdefault(self.here, set())
        known.discard(name)
        change = {"add": ["secret"]} if on else {"remove": ["secret"]}
        self.change(lambda: self.opened.label(f"text:{name}", **change), self.now, crash)
        if on and not crash:
            known.add(name)

    @rule(crash=CRASH)
    def revert(self, crash: int) -> None:
        """The last commit of the branch is undone, and nothing that only its journal holds."""
        commit = self.opened.repository.commit()
        if len(commit.parents) != 1 or commit.parents[0] not in self.past:
            return
        before, done = self.past[commit.parents[0]], self.past[self.opened.repository.resolve()]
        changed = {name for name in before.keys() | done.keys() if before.get(name) != done.get(name)}
        if all(self.now.get(name) == done.get(name) for name in changed):
            kept = {name: text for name, text in self.now.items() if name not in changed}
            after = kept | {name: before[name] for name in changed & before.keys()}
            self.change(lambda: self.opened.revert(self.here), after, crash)

    @rule(crash=CRASH)
    def move_house(self, crash: int) -> None:
        """All of it goes into an archive, and what comes out takes its place."""
        new, before = self.folder / "new", self.refused()
        data = self.packed()
        self.interrupted(lambda: import_archive(io.BytesIO(data), new), crash)
        if not (new / "megacontext.json").exists():
            import_archive(io.BytesIO(data), new)
        shutil.rmtree(self.folder / "m")
        new.rename(self.folder / "m")
        self.reopen()
        assert self.refused() == before
        self.past = {commit: texts for commit, texts in self.past.items() if self.is_there(commit)}

    @precondition(lambda self: self.saved is None and any(self.branches.values()))
    @rule()
    def save(self) -> None:
        self.saved = self.packed(), dict(self.branches)

    @precondition(lambda self: self.saved is not None and not any(name.startswith("saved/") for name in self.branches))
    @rule(crash=CRASH)
    def bring_back(self, crash: int) -> None:
        """An archive from before: what was erased since does not come in."""
        assert self.saved is not None
        data, held_then = self.saved
        models, root = self.bundle, self.folder / "m"

        def take() -> None:
            remake = lambda spec: remaker(models.base, models.gists, spec)  # noqa: E731
            import_archive(io.BytesIO(data), root, prefix="saved", skip_erased=True, remake=remake)

        if self.interrupted(take, crash):
            take()
        for branch, texts in held_then.items():
            self.branches[f"saved/{branch}"] = {name: text for name, text in texts.items() if name not in self.erased}
        for name in (tag for tag in self.opened.repository.tags() if tag.startswith("saved/")):
            self.tags[name] = held(self.opened, name)
            assert not self.tags[name].keys() & self.erased
        self.past |= self.history()

    @rule(crash=CRASH)
    def gc(self, crash: int) -> None:
        self.change(lambda: collect(self.folder / "m", grace=0), self.now, crash)

    @precondition(lambda self: any(self.past.values()))
    @rule(data=st.data(), crash=CRASH)
    def erase(self, data: st.DataObject, crash: int) -> None:
        name = data.draw(st.sampled_from(sorted({name for texts in self.past.values() for name in texts})))
        memory = self.opened
        eraser = Eraser(memory.repository, lambda: memory.tokenizer, lambda: (self.bundle.base, self.bundle.gists))
        before = self.erasures()
        self.interrupted(lambda: eraser.erase(eraser.outlook([f"text:{name}"])), crash)
        if self.erasures() == before:
            # What it does first is to commit what journals hold.
            self.past |= {self.opened.repository.resolve(branch): texts for branch, texts in self.branches.items()}
            return
        self.erased.add(name)
        self.branches = {branch: without(texts, name) for branch, texts in self.branches.items()}
        self.tags = {tag: without(texts, name) for tag, texts in self.tags.items()}
        # Commits that had it have other names now; what they hold is known for those that did not.
        self.past = {commit: texts for commit, texts in self.past.items() if self.is_there(commit)}
        self.past |= self.history()
        for labelled in self.labelled.values():
            labelled.discard(name)

    @rule(name=st.sampled_from(["one", "two", "three"]))
    def branch(self, name: str) -> None:
        if name not in self.branches:
            self.branches[name] = self.past[self.opened.branch(name)]
            self.labelled[name] = set()

    @rule(data=st.data())
    def checkout(self, data: st.DataObject) -> None:
        self.opened.checkout(data.draw(st.sampled_from(sorted(self.branches))))

    @rule(name=st.sampled_from(["t", "u"]))
    def tag(self, name: str) -> None:
        if name not in self.tags:
            self.tags[name] = self.past[self.opened.tag(name)]

    @rule()
    def reopen(self) -> None:
        self.memory = Memory(Repository.open(self.folder / "m"), self.bundle)

    @rule(data=st.data())
    def look_back(self, data: st.DataObject) -> None:
        # In the order in which they were made: their names are others every time.
        commit = list(self.past)[data.draw(st.integers(0, len(self.past) - 1))]
        assert held(self.opened, commit) == self.past[commit]

    @rule()
    def check(self) -> None:
        report = self.opened.fsck()
        assert report.clean, report.findings
        for name, texts in (self.branches | self.tags).items():
            assert held(self.opened, name) == texts, name
        check_gists(self.opened.unpruned().snapshot(), self.bundle)
        denied = Memory(Repository.open(self.folder / "m", deny=["secret"]), self.bundle)
        for branch, names in self.labelled.items():
            seen = {record.source.removeprefix("text:") for record in denied.snapshot(branch).documents.live()}
            assert not seen & names & self.branches[branch].keys(), (branch, seen, names)

    @invariant()
    def the_branch_holds_what_it_should(self) -> None:
        if self.memory is not None:
            assert held(self.opened, self.here) == self.now
            self.refused()

    # -- after an erasure ----------------------------------------------------------------------

    def erasures(self) -> int:
        """How many were carried out."""
        return sum(entry.act == "erase" for entry in audit.read(self.folder / "m").entries)

    def is_there(self, commit: str) -> bool:
        return (self.folder / "m/objects" / commit[:2] / commit).exists()

    def history(self) -> dict[str, Texts]:
        """The commits of all refs as they are called now; what those that are not known hold is read, which `look_back` and the
        erasure's own scan check, and must not be what was erased."""
        found: dict[str, Texts] = {}
        for reference in (*self.branches, *self.tags):
            todo = [self.opened.repository.resolve(reference)]
            while todo:
                commit = todo.pop()
                if commit not in found:
                    found[commit] = self.past.get(commit) or held(self.opened, commit)
                    assert not found[commit].keys() & self.erased
                    todo += self.opened.repository.commit(commit).parents
        return found

    # -- what is looked at ---------------------------------------------------------------------

    def refused(self) -> set[str]:
        """The documents of the branch that cannot be read since some of them is pruned; all others say what they should."""
        snapshot, found = self.opened.snapshot(), set[str]()
        for record in snapshot.documents.live():
            name = record.source.removeprefix("text:")
            try:
                assert self.opened.text(record, snapshot) == self.now[name]
            except DetailPruned:
                found.add(name)
        return found

    def packed(self) -> bytes:
        """An archive of all branches with their history; what was in journals is committed by it."""
        made = prepare_export(self.opened.repository, branches="all", history=True)
        for branch, texts in self.branches.items():
            self.past[self.opened.repository.resolve(branch)] = texts
        return b"".join(bytes(part) for part in made.parts())

    def teardown(self) -> None:
        if self.memory is not None:
            self.check()
        shutil.rmtree(self.folder)


def held(memory: Memory, reference: str) -> Texts:
    """By name, the texts that are there, pruned ones, too."""
    memory = memory.unpruned()
    snapshot = memory.snapshot(reference)
    return {each.source.removeprefix("text:"): memory.text(each, snapshot) for each in snapshot.documents.live()}


def without(texts: Texts, name: str) -> Texts:
    return {other: text for other, text in texts.items() if other != name}


def three_way(base: Texts, ours: Texts, theirs: Texts) -> Texts:
    """A merge in which they win where both changed."""
    merged = {}
    for name in base.keys() | ours.keys() | theirs.keys():
        b, o, t = base.get(name), ours.get(name), theirs.get(name)
        text = o if t == b else t
        if text is not None:
            merged[name] = text
    return merged


def check_gists(snapshot: Snapshot, bundle: Bundle) -> None:
    """Every gist of a live node is the one that a rebuild of all levels makes."""
    if not snapshot.blocks:
        return
    assert bundle.gists is not None and not snapshot.stale_layers
    timeline = snapshot.timeline()
    for _, gists in GistBuilder(bundle.base, bundle.gists).rebuild(snapshot):
        for lod, (start, rows) in gists.items():
            alive = ~timeline.dead_mask(np.full(len(rows), lod, np.int8), np.arange(start, start + len(rows)))
            np.testing.assert_array_equal(snapshot.gists(lod, start, start + len(rows))[alive], rows[alive])


@pytest.mark.slow
def test_a_memory_is_what_dictionaries_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)
    MemoryMachine.bundle = load_bundle(save_tiny_bundle(tmp_path / "bundle", lensnet=False))
    few = settings(max_examples=100 if LONG else 4, stateful_step_count=30 if LONG else 15, deadline=None)
    run_state_machine_as_test(MemoryMachine, settings=few)
