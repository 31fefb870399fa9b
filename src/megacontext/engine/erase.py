"""Erasing documents for good: which ones, what would go, and doing it, with the gists above them made again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from megacontext.core import Timeline
from megacontext.engine.gist_builder import F16, I64, GistBuilder
from megacontext.errors import ConfigError, UnknownReference
from megacontext.index.source_patterns import choose, hint
from megacontext.models.base_lm import BaseLM
from megacontext.models.gistnet import GistEncoder
from megacontext.storage import DocumentRecord, LayerSpec, Repository, Snapshot
from megacontext.storage.erasure.doomed import Doomed, Version, completed
from megacontext.storage.erasure.erase import Order, erase, reached_commits, survey
from megacontext.storage.erasure.rewrite import Remake
from megacontext.storage.hashing import digest

# Pieces of text that the scan looks for; of more, some that lie evenly.
MOST_TEXTS = 2000


class Tokenizer(Protocol):
    """What gives texts back."""

    def decode_batch(self, sequences: list[list[int]], skip_special_tokens: bool = True) -> list[str]:
        """The text of each sequence of tokens."""
        ...


@dataclass(frozen=True, kw_only=True)
class Gone:
    """A document that goes: how many `versions` of it, and the real tokens and blocks of all of them together. `whole`: its
    name goes, too, since no version is left."""

    source: str
    versions: int
    tokens: int
    blocks: int
    whole: bool


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What an erasure would do: documents that go, how many `commits` are written anew, which `branches` and `tags` move, which
    of these tags are `protected`, and documents of other names with the same text, which stay."""

    documents: tuple[Gone, ...]
    commits: int
    branches: tuple[str, ...]
    tags: tuple[str, ...]
    protected: tuple[str, ...]
    copies: tuple[str, ...]
    doomed: Doomed = field(repr=False)
    texts: tuple[str, ...] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        lists = {name: list(getattr(self, name)) for name in ("branches", "tags", "protected", "copies")}
        return {"documents": [asdict(each) for each in self.documents], "commits": self.commits, **lists}


class Eraser:
    """Erases from one memory. `tokenizer` gives texts back; `models` loads base and GistNet (or None without one) where gists
    have to be made again."""

    def __init__(
        self, repository: Repository, tokenizer: Callable[[], Any], models: Callable[[], tuple[BaseLM, GistEncoder | None]]
    ) -> None:
        repository.require_whole("erasing documents")
        # What is pruned goes like the rest: it is read in its archive.
        self._repository, self._tokenizer, self._models = repository.unpruned(), tokenizer, models

    def outlook(self, documents: Sequence[str] = (), *, match: str | None = None) -> Outlook:
        """What erasing would do: of `documents` (see `index.source_patterns`) all versions, or, with
        `match` (a text, or a regular expression between slashes), of these or of all documents the versions whose text it
        occurs in. Raises UnknownReference where there are none. Changes nothing."""
        if not documents and match is None:
            raise ConfigError("name documents to erase, or give match=")
        records = list(self._all_records())
        sources = _chosen({record.source for record, _ in records} - {""}, documents)
        doomed = Doomed(sources=frozenset(sources)) if match is None else self._matching(records, sources, match)
        doomed = completed(doomed, (record for record, _ in records))
        gone = [(record, view) for record, view in records if record in doomed]
        seen = survey(self._repository.root, doomed)
        branches = {name for kind, name in seen.refs if kind == "heads"}
        branches |= {name for name, view in self._views.items() if any(record in doomed for record in view.documents)}
        hashes = {record.text_hash for record, _ in gone if record.text_hash}
        copies = {r.source for r, _ in records if r.text_hash in hashes and r not in doomed and r.source not in doomed.sources}
        return Outlook(
            documents=tuple(_summary([record for record, _ in gone], doomed)),
            commits=len(seen.commits),
            branches=tuple(sorted(branches)),
            tags=tuple(name for kind, name in seen.refs if kind == "tags"),
            protected=seen.protected,
            copies=tuple(sorted(copies)),
            doomed=doomed,
            texts=self._pieces(gone),
        )

    def erase(self, outlook: Outlook, *, author: str = "", include_protected: bool = False) -> dict[str, Any]:
        """Does what an outlook tells; returns the receipt. See `storage.erasure.erase` for what it raises."""
        return erase(
            self._repository.root,
            Order(
                doomed=outlook.doomed,
                remake=self._remake,
                texts=outlook.texts,
                author=author,
                include_protected=include_protected,
            ),
        )

    @cached_property
    def _views(self) -> dict[str, Snapshot]:
        """Each branch with what its journal holds."""
        return {name: self._repository.snapshot(name) for name in self._repository.branches()}

    def _all_records(self) -> Iterator[tuple[DocumentRecord, Snapshot]]:
        """Every distinct record of any commit and journal, with a snapshot that has it."""
        seen: set[DocumentRecord] = set()
        commits = reached_commits(self._repository.root)
        views = (self._repository.snapshot(name) for name in reversed(commits))
        for view in (*self._views.values(), *views):
            for record in view.documents:
                if record not in seen:
                    seen.add(record)
                    yield record, view

    def _matching(self, records: Sequence[tuple[DocumentRecord, Snapshot]], sources: Sequence[str], match: str) -> Doomed:
        pattern, among = _pattern(match), set(sources)
        versions: set[Version] = set()
        texts: set[tuple[str, str]] = set()
        for record, view in records:
            if record.removed or (among and record.source not in among):
                continue
            if pattern.search(self._text(record, view)):
                versions.add(Version.of(record))
                texts.update({(record.source, record.text_hash)} if record.text_hash else ())
        if not versions:
            raise UnknownReference("no version of a document has a text that matches")
        return Doomed(versions=frozenset(versions), texts=frozenset(texts))

    def _text(self, record: DocumentRecord, view: Snapshot) -> str:
        data = view.original(record)
        return data.decode("utf-8") if data is not None else "".join(self._decoded([_tokens(record, view)]))

    def _pieces(self, gone: Sequence[tuple[DocumentRecord, Snapshot]]) -> tuple[str, ...]:
        """The text of each block that goes."""
        blocks = [row for record, view in gone for row in _rows(record, view)]
        step = -(-len(blocks) // MOST_TEXTS) or 1
        return tuple(dict.fromkeys(text for text in self._decoded(blocks[::step]) if text.strip()))

    def _decoded(self, rows: list[list[int]]) -> list[str]:
        return list(self._tokenizer().decode_batch(rows, skip_special_tokens=True))

    def _remake(self, spec: LayerSpec) -> Remake | None:
        return remaker(*self._models(), spec)


def remaker(base: BaseLM, encoder: GistEncoder | None, spec: LayerSpec) -> Remake | None:
    """What makes the gists of a layer again, with this GistNet; None where the layer is another one's."""
    builder = _Remembering(base, encoder) if encoder is not None else None
    return builder.remake if builder is not None and builder.spec == spec else None


class _Remembering(GistBuilder):
    """Many commits have the same families of nodes: each is encoded once."""

    def __init__(self, base: BaseLM, encoder: GistEncoder) -> None:
        super().__init__(base, encoder)
        self._made: dict[str, F16] = {}

    def _encode_families(self, children: F16, index: I64, lod: int, timeline: Timeline | None) -> F16:
        dead = timeline.dead_mask(np.full(len(index), lod - 1, np.int8), index) if timeline is not None else b""
        key = digest(bytes([lod]) + np.asarray(dead).tobytes() + np.ascontiguousarray(children).tobytes())
        if key not in self._made:
            self._made[key] = super()._encode_families(children, index, lod, timeline)
        return self._made[key]


def _chosen(known: set[str], patterns: Sequence[str]) -> list[str]:
    """Sources that the patterns name; raises UnknownReference for a pattern that names none."""
    found: dict[str, None] = {}
    for pattern in patterns:
        chosen = choose(sorted(known), pattern)
        if not chosen:
            raise UnknownReference(f"no document of any branch, tag or commit fits {pattern!r}{hint(sorted(known), pattern)}")
        found.update(dict.fromkeys(chosen))
    return list(found)


def _pattern(match: str) -> re.Pattern[str]:
    if not match:
        raise ConfigError("an empty text occurs everywhere; give match= some of it")
    if len(match) > 2 and match.startswith("/") and match.endswith("/"):
        try:
            return re.compile(match[1:-1], re.MULTILINE)
        except re.error as error:
            raise ConfigError(f"{match} is no regular expression: {error}") from error
    return re.compile(re.escape(match))


def _summary(gone: Sequence[DocumentRecord], doomed: Doomed) -> Iterator[Gone]:
    versions: dict[str, dict[Version, DocumentRecord]] = {}
    for record in gone:
        found = versions.setdefault(record.source, {})
        longest = found.get(Version.of(record))
        if not record.removed and (longest is None or longest.tokens < record.tokens):
            found[Version.of(record)] = record
    for source, found in sorted(versions.items()):
        yield Gone(
            source=source,
            versions=len(found),
            tokens=sum(record.tokens for record in found.values()),
            blocks=sum(record.blocks for record in found.values()),
            whole=source in doomed.sources,
        )


def _rows(record: DocumentRecord, view: Snapshot) -> list[list[int]]:
    """The real tokens of each block of a document, of the unfinished one as well."""
    ids, fill = view.tokens(*record.span), view.fill(*record.span)
    rows: list[list[int]] = [row[:count].tolist() for row, count in zip(ids, fill, strict=True)]
    return [*rows, view.open_ids.tolist()] if record.open and len(view.open_ids) else rows


def _tokens(record: DocumentRecord, view: Snapshot) -> list[int]:
    return [token for row in _rows(record, view) for token in row]
