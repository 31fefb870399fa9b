"""What users hold: a memory on disk together with the models that read it.

Light on purpose: opening a memory, its status, history and texts need no tensor library; the models are
loaded when something has to be encoded or read by them.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megacontext.core import BLOCK
from megacontext.engine.events import IngestStarted, LayersLeftBehind, Listener, nobody
from megacontext.engine.history import live_record, text_difference
from megacontext.engine.searching import Hit, Searching, SearchMode
from megacontext.engine.status import Status, status_of
from megacontext.errors import ConfigError, UnknownReference
from megacontext.storage import DocumentRecord, Repository, Snapshot
from megacontext.storage import Report as FsckReport
from megacontext.storage.hashing import digest
from megacontext.storage.labels import checked_names

if TYPE_CHECKING:
    from megacontext.engine.bundle import Bundle
    from megacontext.engine.ingest import Receipt
    from megacontext.engine.merge import Merged
    from megacontext.engine.merge_plan import Choice
    from megacontext.engine.policies import FocusPolicy
    from megacontext.engine.policies.table import PolicyName
    from megacontext.engine.prune import Pruned
    from megacontext.engine.remove import Removal
    from megacontext.engine.repack import Repacked
    from megacontext.engine.scheduler import Scheduler
    from megacontext.engine.session import Session, SessionConfig
    from megacontext.index.suffix import SuffixIndex
    from megacontext.models.positions import PositionStrategy

SESSIONS = "sessions/"

__all__ = ["SESSIONS", "Hit", "Memory", "PolicyName", "SearchMode", "layer_spec"]


class Memory(Searching):
    """Get one from ``megacontext.open`` or ``megacontext.init``."""

    # -- opening --------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | Path, *, model: str | Path = "bundled", bundle: Bundle | None = None) -> Memory:
        """Make an empty memory for ``model``: ``"bundled"``, a bundle's or model's folder, or a hub id. ``bundle`` is that
        model, where it is loaded already."""
        from megacontext.engine.bundle import load_bundle
        from megacontext.engine.tokenizer_files import tokenizer_files

        bundle = bundle or load_bundle(model)
        repository = Repository.create(
            path,
            tokenizer=bundle.base.tokenizer_fingerprint,
            model=_lasting(model),
            tokenizer_files=tokenizer_files(bundle.tokenizer),
        )
        return cls(repository, bundle)

    @classmethod
    def open(cls, path: str | Path, *, model: str | Path | None = None, deny: Sequence[str] = ()) -> Memory:
        """Open a memory; ``model`` replaces the one that it was made for, if their tokenizers agree. Nothing that carries one
        of the labels in ``deny`` can be had from it, and only sessions can be written."""
        return cls(Repository.open(path, deny=deny), model=str(model) if model is not None else None)

    # -- reading --------------------------------------------------------------------------------

    def status(self, reference: str | None = None) -> Status:
        """What a branch (default: the current one), tag or commit holds."""
        return status_of(self.repository, self.model, reference)

    def text(self, document: DocumentRecord, snapshot: Snapshot | None = None) -> str:
        """The text of a document: decoded from its tokens, or its source's bytes where decoding does not give them back. What
        this reader is denied of it is left out. UnknownReference for a version that a repack left out."""
        view = snapshot or self.snapshot()
        if document.original and (original := view.original(document)) is not None:
            return original.decode("utf-8")
        text = " […] ".join(self.text_of_blocks(view, *run) for run in view.allowed(*document.span))
        if document.text_hash and digest(text.encode("utf-8")) != document.text_hash:
            raise UnknownReference(
                f"version {document.version} of {document.source} is not here any more, since it was repacked; the commits "
                "before, which megacontext log lists, have it"
            )
        return text

    def text_diff(self, document: str, a: str | None = None, b: str | None = None) -> str:
        """How a document's text differs between two states (see ``diff``), as a unified diff; '' where it does not."""
        left, right = self.sides(a, b)
        try:
            source = self.find_document(document, right).source
        except UnknownReference:
            source = self.find_document(document, left).source
        old, new = (self.text(record, side) if (record := live_record(side, source)) else None for side in (left, right))
        return text_difference(source, old, new, (a or left.commit_name[:12], b or right.commit_name[:12]))

    def text_of_blocks(self, snapshot: Snapshot, start: int, stop: int) -> str:
        """The text of blocks ``start:stop``, filling left out; the unfinished block follows its document."""
        ids, fill = snapshot.tokens(start, stop), snapshot.fill(start, stop)
        tokens = ids[np.arange(BLOCK) < fill[:, None]].tolist()
        # Where the conversation has no complete block yet, what ends there is another document.
        if stop == snapshot.blocks and len(snapshot.open_ids):
            begun = snapshot.document_of(stop).start_block
            tokens += snapshot.open_ids.tolist() if begun < stop or start == stop else []
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def find_document(self, source: str, snapshot: Snapshot | None = None) -> DocumentRecord:
        """The live document with this source (or the only one that ends like it), in its newest version."""
        view = snapshot or self.snapshot()
        documents = list(view.documents.live())
        exact = [d for d in documents if d.source == source]
        found = exact or [d for d in documents if d.source.endswith(source)]
        if len(found) == 1:
            return found[0]
        some = ", ".join(d.source for d in (found or documents)[:5]) or "none"
        what = f"{'several documents end' if found else 'no document ends'} with {source!r}; there are: {some}"
        if not found and any(d.source.endswith(source) for d in view.documents):
            what += " (one was removed: older commits, which megacontext log lists, still have it)"
        raise UnknownReference(what)

    def fsck(self) -> FsckReport:
        """Recompute every hash and checksum."""
        return self.repository.fsck()

    # -- writing --------------------------------------------------------------------------------

    def add(
        self,
        *sources: str | Path,
        text: str | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
        labels: Sequence[str] = (),
        message: str = "",
        author: str = "",
        allow_erased: bool = False,
        listener: Listener = nobody,
    ) -> Receipt:
        """Add files and folders (``"-"``: standard input), or ``text``; returns a receipt.

        ``name`` is what ``text`` or standard input is called (``text:<name>``). What is unreadable or binary is
        skipped and reported. Interrupted, it goes on where it was when it is called again with the same sources.
        ``labels`` are put on all of them, on those that are there already, too; see ``label``. What was erased is skipped,
        unless ``allow_erased``.
        """
        from megacontext.engine.ingest import ingest
        from megacontext.engine.regist import left_behind
        from megacontext.engine.source_names import KnownFiles
        from megacontext.engine.sources import STDIN, Text, find_sources, named

        if not sources and text is None:
            raise ConfigError("name files or folders to add, or give text=")
        inputs: list[str | Path | Text] = [str(source) for source in sources]
        if text is not None:
            inputs.append(Text(name=name or "text", text=text))
        elif name is not None and STDIN not in inputs:
            raise ConfigError("a name is for text= or standard input; files and folders have names of their own")
        now, around = self.snapshot(), self.repository.root.resolve().parent
        known = KnownFiles(now.documents.live(), around, lambda record: self.text(record, now))
        found = find_sources(inputs, tags=tags, around=around, known=known)
        listener(IngestStarted(sources=len(found), size=found.size))
        texts = (named(source, name, checked_names(labels)) for source in found)
        bundle = self.bundle
        receipt = ingest(
            self.repository,
            bundle.base,
            bundle.gists,
            texts,
            message=message,
            author=author,
            allow_erased=allow_erased,
            listener=listener,
        )
        receipt = replace(receipt, recognised=found.recognised)
        for source in receipt.unchanged if labels else ():
            self.label(source, add=labels, message=message, author=author)
        if behind := left_behind(self.snapshot(), bundle.gists):
            listener(LayersLeftBehind(layers=behind))
        return receipt

    def remove(self, *documents: str, message: str = "", author: str = "", dry_run: bool = False) -> Removal:
        """Take live documents out: those with these sources, or the ends of them, or patterns with ``*`` and ``?``.

        Older commits still have them. A dry run only tells what fits. UnknownReference, with nothing removed, where one of
        them fits no document.
        """
        from megacontext.engine.remove import remove, would_remove

        if not documents:
            raise ConfigError("name the documents to remove")
        if dry_run:
            return would_remove(self.snapshot(), documents)
        bundle = self.bundle
        return remove(self.repository, bundle.base, bundle.gists, documents, message=message, author=author)

    def repack(
        self, *, branch: str | None = None, everything: bool = False, dry_run: bool = False, message: str = "", author: str = ""
    ) -> Repacked:
        """Leave out dead blocks where they are more than half of a region at the branch's end, or ``everything`` that is dead.

        What lives keeps its texts, order, tags and labels; older commits read as before. Adding does this by itself.
        """
        from megacontext.engine.repack import repack

        models, options = self.models, {"everything": everything, "dry_run": dry_run}
        return repack(self.repository, models.base, models.gists, branch=branch, message=message, author=author, **options)

    def prune(
        self,
        *documents: str,
        before: float | None = None,
        archive: str | Path | None = None,
        dry_run: bool = False,
        author: str = "",
    ) -> Pruned:
        """Move the raw tokens of documents, or of all that were added ``before`` a time, to an archive; their gists stay.

        A window shows them by gists only, searches skip them, and reading them raises DetailPruned until ``restore``.
        """
        from megacontext.engine.prune import prune

        folder = Path(archive) if archive is not None else None
        return prune(self.repository, documents, before=before, archive=folder, dry_run=dry_run, author=author)

    def restore(self, *documents: str, archive: str | Path | None = None, dry_run: bool = False, author: str = "") -> Pruned:
        """Bring pruned raw tokens back, bit for bit: those of these documents, or all."""
        from megacontext.engine.prune import restore

        folder = Path(archive) if archive is not None else None
        return restore(self.repository, documents, archive=folder, dry_run=dry_run, author=author)

    def merge(
        self,
        reference: str,
        *,
        choice: Choice | None = None,
        branch: str | None = None,
        message: str = "",
        author: str = "",
    ) -> Merged:
        """Bring what a branch (a session's too), tag or commit changed since the two parted into a branch (default: the current
        one), at once or not at all. ``choice`` (ours, theirs or both) decides about documents that both changed; without
        one they raise MergeConflict and nothing is written."""
        from megacontext.engine.merge import Merger

        merger = Merger(self.repository, lambda: self.bundle)
        return merger.merge(reference, choice=choice, branch=branch, message=message, author=author)

    def revert(self, commit: str, *, branch: str | None = None, message: str = "", author: str = "") -> Merged:
        """Undo what a commit did, as a new commit. MergeConflict, with nothing written, where it was changed again since."""
        from megacontext.engine.merge import Merger

        return Merger(self.repository, lambda: self.bundle).revert(commit, branch=branch, message=message, author=author)

    def session(
        self,
        *,
        budget: int | None = None,
        name: str | None = None,
        policy: PolicyName | FocusPolicy = "auto",
        positions: PositionStrategy | None = None,
        config: SessionConfig | None = None,
        listener: Listener = nobody,
    ) -> Session:
        """Start a session on a branch of its own, ``sessions/<name>``; the same name continues it.

        ``budget`` is W_max in entries (default: 1,024 or what the base model can hold).
        """
        from megacontext.engine.budgets import sized, telling_smallest
        from megacontext.engine.session import SessionConfig

        bundle = self.bundle
        size = budget if budget is not None else min(SessionConfig.budget, bundle.base.context_length)
        vectors = bundle.gists.vectors if bundle.gists is not None else 1
        telling = telling_smallest(size, self.snapshot().timeline(), vectors, bundle.base.context_length)
        with telling if config is None else nullcontext():
            return self._session(bundle, config or sized(size), name, policy, positions, listener)

    def _session(
        self,
        bundle: Bundle,
        settings: SessionConfig,
        name: str | None,
        policy: PolicyName | FocusPolicy,
        positions: PositionStrategy | None,
        listener: Listener,
    ) -> Session:
        from megacontext.engine.policies.table import policy_named
        from megacontext.engine.regist import check_layer
        from megacontext.engine.searches import searches_of
        from megacontext.engine.session import Session

        chosen = policy_named(policy, bundle) if isinstance(policy, str) else policy
        branch = SESSIONS + (name or secrets.token_hex(4))
        if branch not in self.repository.branches():
            self.repository.create_branch(branch)
        check_layer(self.snapshot(branch), bundle.gists, self.model, branch)
        if others := tuple(layer for layer in self.layers(branch) if layer.fingerprint != _fingerprint(bundle)):
            listener(LayersLeftBehind(layers=others))
        writer = self.repository.writer(branch, layer=layer_spec(bundle), appending=True)
        try:
            return Session(
                writer,
                bundle,
                chosen,
                settings,
                source=f"session:{branch.removeprefix(SESSIONS)}",
                strategy=positions,
                searching=searches_of(self.index, self.suffix_index, bundle),
                listener=listener,
            )
        except BaseException:
            writer.close()
            raise

    @cached_property
    def suffix_index(self) -> SuffixIndex:
        """The derived index of token suffixes; made and repaired by itself."""
        from megacontext.index.suffix import SuffixIndex

        return SuffixIndex(self.repository.root)

    def scheduler(self, **settings: int) -> Scheduler:
        """Serves many sessions of this model at once, decoding them together; ``settings`` as in ``SchedulerConfig``.

        As a context manager it has a thread: ``submit(session, prompt)`` comes back with a request, whose pieces can be
        iterated.
        """
        from megacontext.engine.scheduler import Scheduler, SchedulerConfig

        return Scheduler(self.bundle, SchedulerConfig(**settings))

    def drop_session(self, branch: str) -> None:
        """Remove a session's branch; what it wrote is then unreachable."""
        self.repository.delete_branch(branch)


def layer_spec(bundle: Bundle) -> Any:
    """The storage layer that this bundle's gists belong to, or None without a GistNet."""
    from megacontext.storage import LayerSpec

    if bundle.gists is None:
        return None
    return LayerSpec(fingerprint=bundle.gists.fingerprint, vectors=bundle.gists.vectors, width=bundle.gists.width)


def _fingerprint(bundle: Bundle) -> str:
    return bundle.gists.fingerprint if bundle.gists is not None else ""


def _lasting(model: str | Path) -> str:
    """A model's name that means the same from every working folder: a folder's by its whole path."""
    return str(Path(model).absolute()) if str(model) != "bundled" and Path(model).is_dir() else str(model)
