"""Another tokenizer: a new memory of the same texts, for another model.

Tokens and gists belong to a tokenizer; texts, and what is known of them, do not. Every document of a branch is tokenised
anew from its text, with its source, version, tags, labels, media type and time of ingest. Where a commit came from stands in
its message, and that is how an interrupted conversion finds its place again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from megacontext.engine import conversation
from megacontext.engine.archived import out_of_reach, refuse
from megacontext.engine.events import ConvertStarted, Listener, nobody
from megacontext.engine.gist_builder import GistBuilder
from megacontext.engine.ingest import Ingest, IngestConfig
from megacontext.engine.regist import check_layer
from megacontext.engine.remove import remove_one
from megacontext.engine.sources import Source
from megacontext.engine.span_labels import marks_of, set_marks
from megacontext.engine.text_blocks import TextCutter
from megacontext.errors import InvalidInput, MemoryNotFound
from megacontext.storage import BranchWriter, Commit, DocumentRecord, Repository, Snapshot
from megacontext.storage.hashing import digest

if TYPE_CHECKING:
    from megacontext.engine.layered import Layered

ORIGIN = "Converted-from: "
_ORIGIN = re.compile(rf"^{ORIGIN}([0-9a-f]{{64}})$", re.MULTILINE)
# One commit here for each there: they find each other by it. Those there were bounded already.
_WHOLE = IngestConfig(commit_blocks=2**62)


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A branch: `origin` is the commit of the old memory that `commit` here holds the texts of. `documents` were converted by
    this run, `removed` taken out; `commits` were made. `differing` are sources whose text is not the same here as there,
    `skipped` those that were left out since their raw tokens are archived where they cannot be read."""

    branch: str
    origin: str
    commit: str
    documents: int
    removed: int
    commits: int
    tokens: int
    blocks: int
    differing: tuple[str, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ConvertReceipt:
    """What became of the branches of the old memory in the new one at `path`."""

    path: str
    model: str
    branches: tuple[Converted, ...]
    seconds: float

    @property
    def lossless(self) -> bool:
        """Whether all texts came out the same."""
        return not any(branch.differing for branch in self.branches)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "lossless": self.lossless}


class _Step(NamedTuple):
    """What one commit (of the old memory) changes: documents that are new or differ, in order, and sources that are gone."""

    origin: str
    commit: Commit
    view: Snapshot
    records: list[DocumentRecord]
    gone: list[str]


def convert(
    old: Layered,
    new: Layered,
    *,
    branches: Sequence[str] = (),
    history: bool = False,
    skip_pruned: bool = False,
    author: str = "",
    listener: Listener = nobody,
) -> ConvertReceipt:
    """Converts branches (default: the current one) of `old` into `new`, which is empty or an earlier conversion of `old`.

    With `history`, every commit since the first becomes one, with its author, time and message; otherwise a branch becomes one
    commit, or several while it grows. What is there already stays: called again, it goes on, or brings over what is new.

    What is pruned is read in its archive. Where one is not at hand, its documents are left out with `skip_pruned`, and the
    receipt names them; without it DetailPruned is raised, with what came before them converted.
    """
    started = time.perf_counter()
    names = tuple(dict.fromkeys(branches)) or (old.repository.head,)
    whole = old.unpruned()
    converted = tuple(_Branch(whole, new, name, skip_pruned, listener)(history=history, author=author) for name in names)
    return ConvertReceipt(
        path=str(new.repository.root), model=new.model, branches=converted, seconds=time.perf_counter() - started
    )


def origin_of(commit: Commit) -> str | None:
    """The commit of another memory that this one was converted from."""
    found = _ORIGIN.findall(commit.message)
    return found[-1] if found else None


def opened_for(old: Repository, path: str | Path, model: str | Path, branches: Sequence[str]) -> Layered:
    """The memory at `path` for `model`, made if it is not there and `old` can be converted. A tag marks it as a conversion.

    Raises AccessDenied for a reader that is denied something, UnknownReference where one of `branches` is not there,
    InvalidInput where the tokenizers are the same, or the memory at `path` holds something else.
    """
    from megacontext.engine.bundle import load_bundle
    from megacontext.engine.memory import Memory

    old.require_whole("convert")
    for name in branches:
        old.refs.branch(name)
    try:
        memory = Memory.open(path, model=model)
        _require_other(old, memory.repository.info.tokenizer, model)
    except MemoryNotFound:
        bundle = load_bundle(model)
        _require_other(old, bundle.base.tokenizer_fingerprint, model)
        memory = Memory.create(path, model=model, bundle=bundle)
    new = memory.repository
    *_, (root, _) = old.history()
    tag = f"converted-from-{root[:16]}"
    if tag not in new.tags():
        if len(new.snapshot().documents) or len(new.branches()) > 1 or new.tags():
            raise InvalidInput(f"{new.root} holds something else than a conversion of {old.root}; choose a new folder")
        new.create_tag(tag)
    return memory


def _require_other(old: Repository, tokenizer: str, model: str | Path) -> None:
    if old.info.tokenizer == tokenizer:
        raise InvalidInput(f"{model} has the tokenizer that the memory has: megacontext regist --model does it")


class _Branch:
    """One branch on its way."""

    def __init__(self, old: Layered, new: Layered, name: str, skip_pruned: bool, listener: Listener) -> None:
        self._old, self._new, self._name, self._tell = old, new, name, listener
        self._skip_pruned, self._skipped = skip_pruned, dict[str, None]()
        bundle = new.models
        self._builder = GistBuilder(bundle.base, bundle.gists) if bundle.gists is not None else None
        self._tokenizer = bundle.tokenizer
        self._cutter = TextCutter(bundle.tokenizer)
        self._documents = self._removed = 0

    def __call__(self, *, history: bool, author: str) -> Converted:
        old, new, name = self._old, self._new, self._name
        chain = [commit for commit, _ in old.repository.history(name)][::-1]
        self._begin(chain)
        before = new.snapshot(name)
        steps = list(self._steps(chain, history))
        sizes = [record.chars for step in steps for record in step.records]
        self._tell(ConvertStarted(branch=name, documents=len(sizes), chars=sum(sizes)))
        for step in steps:
            self._take(step, history, author)
        view = old.snapshot(name)
        self._settle_labels(view)
        after = new.snapshot(name)
        commits = [commit for commit, _ in new.repository.history(name)]
        return Converted(
            branch=name,
            origin=view.commit_name,
            commit=after.commit_name,
            documents=self._documents,
            removed=self._removed,
            commits=commits.index(before.commit_name),
            tokens=sum(record.tokens for record in after.documents.live()),
            blocks=after.blocks - before.blocks,
            differing=tuple(differing(old, view, new, after, self._skipped)),
            skipped=tuple(self._skipped),
        )

    def _begin(self, chain: list[str]) -> None:
        """Makes the branch, from the newest commit here that was converted from one of the chain."""
        repository = self._new.repository
        if self._name in repository.branches():
            check_layer(repository.snapshot(self._name), self._new.models.gists, self._new.model, self._name)
            return
        places = {commit: at for at, commit in enumerate(chain)}
        *_, (start, _) = repository.history()
        best = -1
        for branch in repository.branches():
            for commit, each in repository.history(branch):
                place = places.get(origin_of(each) or "", -1)
                if place > best:
                    best, start = place, commit
        repository.create_branch(self._name, start)

    def _steps(self, chain: list[str], history: bool) -> Iterator[_Step]:
        """What is still to be done: for each commit of the chain what it changes, and then what is not in a commit yet; or all
        of it at once."""
        repository = self._old.repository
        view = repository.snapshot(self._name)
        done = {origin_of(commit) for _, commit in self._new.repository.history(self._name)} if history else set()
        known: dict[str, DocumentRecord] = {}
        if not history:
            here = {record.source for record in self._new.snapshot(self._name).documents.live()}
            yield self._step(view.commit_name, view, known, here)
            return
        last = max((at for at, commit in enumerate(chain) if commit in done), default=-1)
        previous = ""
        for at, commit in enumerate(chain):
            snapshot = repository.snapshot(commit)
            if snapshot.commit.documents == previous:
                continue
            step = self._step(commit, snapshot, known)
            known, previous = _live(snapshot), snapshot.commit.documents
            if at > last and (step.records or step.gone):
                yield step
        final = self._step(view.commit_name, view, known)
        if final.records or final.gone:
            yield final

    def _step(self, origin: str, view: Snapshot, known: Mapping[str, DocumentRecord], here: set[str] | None = None) -> _Step:
        """From what was `known` (sources, or those that are `here`) to what a snapshot sees."""
        live = _live(view)
        records = [record for source, record in live.items() if source not in known or _differ(record, known[source])]
        lost = out_of_reach(self._old.repository, origin, records)
        if not self._skip_pruned:
            refuse(lost, "a conversion", "; with --skip-pruned all others are converted")
        self._skipped.update({record.source: None for record in lost})
        records = [record for record in records if record not in lost]
        gone = sorted((known.keys() if here is None else here) - live.keys())
        return _Step(origin, view.commit, view, records, gone)

    def _take(self, step: _Step, history: bool, author: str) -> None:
        """Carries a step out. What of it is there already, from a run that was interrupted, is left as it is."""
        new, builder = self._new, self._builder
        spec = builder.spec if builder else None
        title = step.commit.message if history else f"Convert {self._name}"
        message = f"{title}\n\n{ORIGIN}{step.origin}"
        who, moment = (step.commit.author, step.commit.time) if history else (author, None)
        growing = [record for record in step.records if record.open]
        with new.repository.writer(self._name, layer=spec) as writer:
            self._end_conversation(writer, step)
            for record in [each for each in writer.snapshot().documents.live() if each.source in step.gone]:
                remove_one(writer, builder, record)
                self._removed += 1
            config = _WHOLE if history else None
            ingest = Ingest(writer, self._cutter, builder, config=config, listener=self._tell)
            # The last commit of a step names its origin: with that one it is done.
            first = title if growing else message
            receipt = ingest(self._sources(step, writer.snapshot()), message=first, author=who, moment=moment)
            self._documents += receipt.documents
            for record in growing:
                self._grow(writer, record, self._old.text(record, step.view))
                writer.commit(message, who, moment)

    def _sources(self, step: _Step, there: Snapshot) -> Iterator[Source]:
        """The documents of a step that are not there; their texts are read one by one."""
        here = {record.source: record.text_hash for record in there.documents.live()}
        for record in step.records:
            if record.open or (record.text_hash and here.get(record.source) == record.text_hash):
                continue
            marks = marks_of(step.view, record)
            yield Source(
                uri=record.source,
                text=self._old.text(record, step.view),
                media_type=record.media_type,
                tags=record.tags,
                # On all of it at first: what is denied must not be seen for a moment.
                labels=tuple(sorted({*marks.labels, *marks.spans})),
                version=record.version,
                ingested_at=record.ingested_at,
            )

    def _end_conversation(self, writer: BranchWriter, step: _Step) -> None:
        """What still grew after the step before, and is finished or continued in this one."""
        here = writer.document
        if here is None or not here.open:
            return
        record = _live(step.view).get(here.source)
        if record is None:
            raise InvalidInput(f"{here.source} is not there any more, and still open here; convert into a new folder")
        if not record.open:
            text = self._old.text(record, step.view)
            self._grow(writer, replace(here, labels=record.labels), text)
            conversation.end(writer, self._builder, text, digest(text.encode()), self._cutter.filling)
            self._documents += 1

    def _grow(self, writer: BranchWriter, record: DocumentRecord, text: str) -> None:
        """Begins a conversation or continues it, up to `text`."""
        begun = writer.begin_document(
            source=record.source,
            media_type=record.media_type,
            version=record.version,
            tags=record.tags,
            labels=record.labels,
            ingested_at=record.ingested_at,
            open=True,
        )
        self._documents += not begun.tokens
        view = writer.snapshot()
        have = self._new.text(view.documents[len(view.documents) - 1], view)
        # Bytes that did not yet make a character will be one later.
        more = text if text.startswith(have) else text.rstrip("\ufffd")
        if not more.startswith(have):
            raise InvalidInput(f"{record.source} is not what it was when it was converted; convert into a new folder")
        encoded = self._tokenizer(more[len(have) :], add_special_tokens=False, split_special_tokens=True, verbose=False)
        conversation.append_tokens(writer, self._builder, np.array(encoded["input_ids"], np.uint32), view.timeline())
        writer.sync()

    def _settle_labels(self, view: Snapshot) -> None:
        """Labels and tags as they are there now; those of lines on the blocks that hold these lines."""
        marks = {record.source: marks_of(view, record) for record in view.documents.live()}
        set_marks(self._new.repository, self._name, marks, f"Labels\n\n{ORIGIN}{view.commit_name}")


def differing(old: Layered, there: Snapshot, new: Layered, here: Snapshot, skipped: Collection[str] = ()) -> Iterator[str]:
    """Sources of live documents whose text, or what is known of it, is not the same in both; skipped ones aside."""
    ours = {record.source: record for record in here.documents.live() if record.source not in skipped}
    for record in there.documents.live():
        if record.source in skipped:
            continue
        mine = ours.pop(record.source, None)
        # An empty text has no tokens, and is no document.
        if mine is None and not record.tokens:
            continue
        if mine is None or _known(mine) != _known(record) or old.text(record, there) != new.text(mine, here):
            yield record.source
    yield from ours


def _known(record: DocumentRecord) -> tuple[Any, ...]:
    return (record.media_type, set(record.tags), set(record.labels), record.ingested_at, record.version, record.open)


def _live(view: Snapshot) -> dict[str, DocumentRecord]:
    return {record.source: record for record in view.documents.live()}


def _differ(a: DocumentRecord, b: DocumentRecord) -> bool:
    """Whether two records of a source are of different texts; where they stand does not matter."""
    return (a.version, a.text_hash, a.tokens, a.open) != (b.version, b.text_hash, b.tokens, b.open)
