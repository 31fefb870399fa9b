"""What users hold: a memory on disk together with the models that read it.

Light on purpose: opening a memory, its status, history and texts need no tensor library; the models are
loaded when something has to be encoded or read by them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from megacontext.core import BLOCK
from megacontext.engine.events import IngestStarted, Listener, nobody
from megacontext.errors import ConfigError, ModelMismatch, UnknownReference
from megacontext.index.fulltext import FullTextIndex
from megacontext.storage import Commit, DocumentRecord, Repository, Snapshot
from megacontext.storage import Report as FsckReport

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from megacontext.engine.bundle import Bundle
    from megacontext.engine.ingest import Receipt
    from megacontext.engine.policies import FocusPolicy
    from megacontext.engine.session import Session, SessionConfig
    from megacontext.engine.sources import Skipped, Source
    from megacontext.models.positions import PositionStrategy

PolicyName = Literal["auto", "lens", "recency", "random", "retrieval"]
SESSIONS = "sessions/"


@dataclass(frozen=True, kw_only=True)
class Status:
    """``levels`` maps each LOD to its complete nodes; ``layers`` gist fingerprints to blocks covered."""

    path: str
    branch: str
    commit: str
    documents: int
    tokens: int
    blocks: int
    levels: dict[int, int]
    layers: dict[str, int]
    model: str

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        levels = {str(lod): count for lod, count in self.levels.items()}
        return {**self.__dict__, "levels": levels}


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A block that a search found: where its text begins in which document, and the text."""

    block: int
    score: float
    source: str
    line: int
    text: str

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return dict(self.__dict__)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Documents (by source) that differ between two states."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


class Memory:
    """Get one from ``megacontext.open`` or ``megacontext.init``."""

    def __init__(self, repository: Repository, bundle: Bundle | None = None, model: str | None = None) -> None:
        self.repository = repository
        self.model = model or repository.info.model
        self._given = bundle

    # -- opening --------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | Path, *, model: str | Path = "bundled") -> Memory:
        """Make an empty memory for ``model``: ``"bundled"``, a bundle's or model's folder, or a hub id."""
        from megacontext.engine.bundle import load_bundle
        from megacontext.engine.tokenizer_files import tokenizer_files

        bundle = load_bundle(model)
        repository = Repository.create(
            path,
            tokenizer=bundle.base.tokenizer_fingerprint,
            model=_lasting(model),
            tokenizer_files=tokenizer_files(bundle.tokenizer),
        )
        return cls(repository, bundle)

    @classmethod
    def open(cls, path: str | Path, *, model: str | Path | None = None) -> Memory:
        """Open a memory; ``model`` replaces the one that it was made for, if their tokenizers agree."""
        return cls(Repository.open(path), model=str(model) if model is not None else None)

    @cached_property
    def bundle(self) -> Bundle:
        """The models; loaded on first use. ModelMismatch where they do not belong to this memory."""
        from megacontext.engine.bundle import load_bundle

        bundle = self._given or load_bundle(self.model)
        expected, found = self.repository.info.tokenizer, bundle.base.tokenizer_fingerprint
        if expected != found:
            raise ModelMismatch(
                f"this memory's tokens were made by another tokenizer ({expected[:12]}, not {found[:12]} of "
                f"{self.model}): open it with the model it was made for ({self.repository.info.model}), or make a "
                "new memory for this model with megacontext init"
            )
        self._check_layer(bundle)
        return bundle

    def _check_layer(self, bundle: Bundle) -> None:
        snapshot = self.snapshot()
        mine = bundle.gists.fingerprint if bundle.gists is not None else None
        if not snapshot.blocks or (not snapshot.layers and mine is None):
            return
        if mine is None or snapshot.layers.get(mine, 0) < snapshot.blocks:
            known = ", ".join(name[:12] for name in snapshot.layers) or "none"
            raise ModelMismatch(
                f"the gists of this memory were made by another GistNet ({known}, not {mine[:12] if mine else 'none'}): "
                f"open it with the model it was made for ({self.repository.info.model})"
            )

    # -- reading --------------------------------------------------------------------------------

    def snapshot(self, reference: str | None = None) -> Snapshot:
        """An immutable view of a branch (default: the current one), tag or commit."""
        return self.repository.snapshot(reference)

    def status(self) -> Status:
        """What the current branch holds."""
        snapshot = self.snapshot()
        return Status(
            path=str(self.repository.root),
            branch=self.repository.head,
            commit=snapshot.commit_name,
            documents=len(snapshot.documents),
            tokens=sum(document.tokens for document in snapshot.documents),
            blocks=snapshot.blocks,
            levels={0: snapshot.cursor} | _levels(snapshot.blocks),
            layers=dict(snapshot.layers),
            model=self.model,
        )

    def log(self, reference: str | None = None) -> Iterator[tuple[str, Commit]]:
        """Names and commits, newest first."""
        return self.repository.history(reference)

    def text(self, document: DocumentRecord, snapshot: Snapshot | None = None) -> str:
        """The text of a document: decoded from its tokens, or its source's bytes where decoding does not give them back."""
        if document.original:
            return self.repository.read_object(document.original).decode("utf-8")
        view = snapshot or self.snapshot()
        return self.text_of_blocks(view, document.start_block, document.start_block + document.blocks)

    def text_of_blocks(self, snapshot: Snapshot, start: int, stop: int) -> str:
        """The text of blocks ``start:stop``, filling left out; the unfinished block follows its document."""
        ids, fill = snapshot.tokens(start, stop), snapshot.fill(start, stop)
        tokens = ids[np.arange(BLOCK) < fill[:, None]].tolist()
        if stop == snapshot.blocks:
            tokens += snapshot.open_ids.tolist()
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The memory's own tokenizer, from the files that it keeps; light."""
        from megacontext.engine.tokenizer_files import light_tokenizer

        return light_tokenizer(self.repository.root / "tokenizer", self.repository.info.tokenizer_files)

    def find_document(self, source: str, snapshot: Snapshot | None = None) -> DocumentRecord:
        """The newest version of the document with this source (or the only one that ends like it)."""
        documents = list((snapshot or self.snapshot()).documents)
        exact = [d for d in documents if d.source == source]
        loose = exact or [d for d in documents if d.source.endswith(source)]
        if not loose or len({d.source for d in loose}) > 1:
            some = ", ".join(d.source for d in (loose or documents)[:5]) or "none"
            raise UnknownReference(
                f"{'several documents end' if loose else 'no document ends'} with {source!r}; there are: {some}"
            )
        return loose[-1]

    def search(self, query: str, limit: int = 10, reference: str | None = None) -> list[Hit]:
        """The blocks that match ``query`` best (BM25 over tokens), best first."""
        snapshot = self.snapshot(reference)
        ids = np.asarray(self.tokenizer.encode(query, add_special_tokens=False).ids, dtype=np.int64)
        blocks, scores = self.index.search(snapshot, ids, limit)
        lines = snapshot.spans_at(blocks)[1].tolist()
        return [
            Hit(
                block=block,
                score=score,
                source=snapshot.document_of(block).source,
                line=line,
                text=self.text_of_blocks(snapshot, block, block + 1),
            )
            for block, score, line in zip(blocks.tolist(), scores.tolist(), lines, strict=True)
        ]

    @cached_property
    def index(self) -> FullTextIndex:
        """The derived full-text index; made and repaired by itself."""
        return FullTextIndex(self.repository.root, special_ids=self._special_ids)

    @property
    def _special_ids(self) -> list[int]:
        """Tokens that mean nothing to a search: end of text, padding and the like."""
        return [id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special]

    def diff(self, a: str, b: str | None = None) -> Difference:
        """Documents that differ between two references (default of ``b``: the current branch)."""
        old, new = _newest(self.snapshot(a)), _newest(self.snapshot(b))
        return Difference(
            added=tuple(sorted(new.keys() - old.keys())),
            removed=tuple(sorted(old.keys() - new.keys())),
            changed=tuple(sorted(s for s in new.keys() & old.keys() if new[s] != old[s])),
        )

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
        message: str = "",
        author: str = "",
        listener: Listener = nobody,
    ) -> Receipt:
        """Add files and folders (``"-"``: standard input), or ``text``; returns a receipt.

        ``name`` is what ``text`` or standard input is called (``text:<name>``). What is unreadable or binary is
        skipped and reported. Interrupted, it goes on where it was when it is called again with the same sources.
        """
        from megacontext.engine.ingest import ingest
        from megacontext.engine.sources import STDIN, Text, find_sources

        if not sources and text is None:
            raise ConfigError("name files or folders to add, or give text=")
        inputs: list[str | Path | Text] = [str(source) for source in sources]
        if text is not None:
            inputs.append(Text(name=name or "text", text=text))
        elif name is not None and STDIN not in inputs:
            raise ConfigError("a name is for text= or standard input; files and folders have names of their own")
        found = find_sources(inputs, tags=tags)
        listener(IngestStarted(sources=len(found), size=found.size))
        named = (_renamed(source, name) for source in found) if name is not None else found
        bundle = self.bundle
        return ingest(self.repository, bundle.base, bundle.gists, named, message=message, author=author, listener=listener)

    def branch(self, name: str, at: str | None = None) -> str:
        """Create a branch; returns the commit it starts from."""
        return self.repository.create_branch(name, at)

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
        from megacontext.engine.session import Session, SessionConfig

        bundle = self.bundle
        size = budget if budget is not None else min(SessionConfig.budget, bundle.base.context_length)
        settings = config or SessionConfig(budget=size, recent=min(SessionConfig.recent, size // 4))
        chosen = self._policy(policy, bundle) if isinstance(policy, str) else policy
        branch = SESSIONS + (name or secrets.token_hex(4))
        if branch not in self.repository.branches():
            self.repository.create_branch(branch)
        writer = self.repository.writer(branch, layer=layer_spec(bundle))
        try:
            return Session(
                writer,
                bundle,
                chosen,
                settings,
                source=f"session:{branch.removeprefix(SESSIONS)}",
                strategy=positions,
                search=self._search(writer.snapshot()),
                listener=listener,
            )
        except BaseException:
            writer.close()
            raise

    def _search(self, snapshot: Snapshot) -> Any:
        def search(query: np.ndarray[Any, Any], limit: int) -> Any:
            return self.index.search(snapshot, query, limit)

        return search

    @staticmethod
    def _policy(name: str, bundle: Bundle) -> FocusPolicy:
        from megacontext.engine.policies import Random, Recency, Retrieval
        from megacontext.engine.policies.lens import Lens

        if name == "lens" and bundle.lens is None:
            raise ConfigError(f"{bundle.name} has no LensNet: choose retrieval, or train one with megacontext train lens")
        if bundle.lens is not None and name in ("auto", "lens"):
            return Lens(bundle.lens, bundle.base)
        policies: dict[str, type[Random] | type[Recency] | type[Retrieval]] = {
            "auto": Retrieval,
            "random": Random,
            "recency": Recency,
            "retrieval": Retrieval,
        }
        if name not in policies:
            raise ConfigError(f"no focus policy {name!r}: choose auto, lens, {', '.join(sorted(policies)[1:])}")
        return policies[name]()

    def drop_session(self, branch: str) -> None:
        """Remove a session's branch; what it wrote is then unreachable."""
        self.repository.delete_branch(branch)


def layer_spec(bundle: Bundle) -> Any:
    """The storage layer that this bundle's gists belong to, or None without a GistNet."""
    from megacontext.storage import LayerSpec

    if bundle.gists is None:
        return None
    return LayerSpec(fingerprint=bundle.gists.fingerprint, vectors=bundle.gists.vectors, width=bundle.gists.width)


def _lasting(model: str | Path) -> str:
    """A model's name that means the same from every working folder: a folder's by its whole path."""
    return str(Path(model).absolute()) if str(model) != "bundled" and Path(model).is_dir() else str(model)


def _renamed(source: Source | Skipped, name: str) -> Source | Skipped:
    """Standard input under a name of its own; everything else as it is."""
    return replace(source, uri=f"text:{name}") if source.uri == "stdin:" else source


def _levels(blocks: int) -> dict[int, int]:
    levels, lod = {}, 1
    while blocks:
        levels[lod] = blocks
        blocks, lod = blocks // BLOCK, lod + 1
    return levels


def _newest(snapshot: Snapshot) -> dict[str, str]:
    return {document.source: document.text_hash for document in snapshot.documents}
