"""A state machine against a perfect in-memory model: what is read always equals what was written."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from storage_driver import SPEC, Gister, check_layer, create, ids_of, say

from megacontext.core.node import BLOCK
from megacontext.storage import BranchWriter, Repository, Snapshot


@dataclass
class Model:
    """A branch as it should be."""

    ids: np.ndarray = field(default_factory=lambda: np.empty((0, BLOCK), np.uint32))
    documents: list[tuple[str, int, int]] = field(default_factory=list)
    open_ids: list[int] = field(default_factory=list)
    gister: Gister = field(default_factory=Gister)
    chat: str = ""

    def copy(self) -> Model:
        return Model(self.ids, list(self.documents), list(self.open_ids), self.gister.copy(), self.chat)


class StorageMachine(RuleBasedStateMachine):
    """Branches are written one at a time; each may be left, reopened, forked and read at old commits."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.number = 0

    @initialize()
    def start(self) -> None:
        self.repository = create(self.folder / "m")
        self.models = {"main": Model()}
        self.committed = {"main": Model()}
        self.past: list[tuple[str, Model]] = []
        self.branch = "main"
        self.writer: BranchWriter = self.repository.writer(layer=SPEC)

    @property
    def model(self) -> Model:
        return self.models[self.branch]

    def source(self) -> str:
        self.number += 1
        return f"s{self.number}"

    @precondition(lambda self: not self.model.chat)
    @rule(blocks=st.integers(0, 45), last=st.integers(1, BLOCK), cut=st.integers(1, 45), fate=st.sampled_from("edac"))
    def document(self, blocks: int, last: int, cut: int, fate: str) -> None:
        """A document that is ended, left and dropped, aborted, or interrupted and resumed."""
        source, model, ids = self.source(), self.model, ids_of(f"{self.number}", blocks)
        fill = np.full(blocks, BLOCK, np.uint8)
        fill[-1:] = last
        gister = model.gister.copy()
        self.writer.begin_document(source=source, text_hash=source)
        for at in range(0, blocks, cut):
            part = slice(at, min(at + cut, blocks))
            self.writer.append_blocks(ids[part], fill[part], gists=gister.add(ids[part], fill[part]))
            if fate == "c" and at == 0:
                self.reopen()
                assert self.writer.begin_document(source=source, text_hash=source).blocks == part.stop
        if fate == "a":
            self.writer.abort_document()
            return
        if fate == "d":
            self.reopen()
            self.writer.abort_document()
            return
        self.writer.end_document()
        model.gister = gister
        model.ids = np.concatenate((model.ids, ids))
        model.documents.append((source, blocks, int(fill.sum())))

    @rule(count=st.integers(0, 80))
    def talk(self, count: int) -> None:
        model = self.model
        if not model.chat:
            model.chat = self.source()
            model.documents.append((model.chat, 0, 0))
        self.writer.begin_document(source=model.chat, open=True)
        tokens = np.arange(count, dtype=np.uint32) + self.number
        say(self.writer, tokens, model.gister)
        joined = np.array([*model.open_ids, *tokens.tolist()], np.uint32)
        whole = len(joined) // BLOCK
        model.ids = np.concatenate((model.ids, joined[: whole * BLOCK].reshape(whole, BLOCK)))
        model.open_ids = joined[whole * BLOCK :].tolist()
        source, blocks, length = model.documents[-1]
        model.documents[-1] = (source, blocks + whole, length + count)

    @precondition(lambda self: self.model.chat)
    @rule()
    def fall_silent(self) -> None:
        model = self.model
        gists = None
        if model.open_ids:
            row = np.array(model.open_ids + [7] * (BLOCK - len(model.open_ids)), np.uint32)[None]
            gists = model.gister.add(row)
            model.ids = np.concatenate((model.ids, row))
            source, blocks, length = model.documents[-1]
            model.documents[-1] = (source, blocks + 1, length)
        self.writer.end_document(pad=7, gists=gists)
        model.open_ids, model.chat = [], ""

    @rule()
    def commit(self) -> None:
        name = self.writer.commit()
        self.committed[self.branch] = self.model.copy()
        self.past.append((name, self.model.copy()))

    @rule()
    def reopen(self) -> None:
        self.writer.close()
        self.repository = Repository.open(self.folder / "m")
        self.writer = self.repository.writer(self.branch, layer=SPEC)

    @precondition(lambda self: len(self.models) < 4)
    @rule()
    def fork(self) -> None:
        name = f"fork/{len(self.models)}"
        self.repository.create_branch(name, at=self.branch)
        self.models[name] = self.committed[self.branch].copy()
        self.committed[name] = self.committed[self.branch].copy()

    @rule(data=st.data())
    def switch(self, data: st.DataObject) -> None:
        self.writer.close()
        self.branch = data.draw(st.sampled_from(sorted(self.models)))
        self.repository.checkout(self.branch)
        self.writer = self.repository.writer(layer=SPEC)

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def look_back(self, data: st.DataObject) -> None:
        name, model = data.draw(st.sampled_from(self.past))
        self.compare(self.repository.snapshot(name), model)

    @rule()
    def check(self) -> None:
        report = self.repository.fsck()
        assert report.clean, report.findings

    @invariant()
    def what_is_read_is_what_was_written(self) -> None:
        if not hasattr(self, "writer"):
            return
        self.compare(self.repository.snapshot(), self.model)
        self.compare(self.writer.snapshot(), self.model)

    def compare(self, snapshot: Snapshot, model: Model) -> None:
        assert snapshot.blocks == len(model.ids)
        np.testing.assert_array_equal(snapshot.tokens(0, snapshot.blocks), model.ids)
        assert snapshot.open_ids.tolist() == model.open_ids
        assert [(each.source, each.blocks, each.tokens) for each in snapshot.documents] == model.documents
        if snapshot.blocks:
            check_layer(snapshot, model.gister)

    def teardown(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()
        shutil.rmtree(self.folder)


TestStorage = StorageMachine.TestCase
TestStorage.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
