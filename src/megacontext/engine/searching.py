"""Searching a memory: by text, by tokens, by gists, or by all of them.

Only gists need the models. Every hit is read from the snapshot: nothing is found that is dead, pruned, denied or of another
branch, whatever the derived indexes hold.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from megacontext.engine.layered import Layered
from megacontext.errors import ConfigError
from megacontext.index.disposable import Keep, Progress, silent
from megacontext.index.filters import Filters, both
from megacontext.index.fulltext import NOTHING, FullTextIndex, Hits
from megacontext.index.fusion import fused
from megacontext.index.text import TextIndex
from megacontext.storage import Snapshot

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SearchMode = Literal["text", "tokens", "gists", "hybrid"]
MODES: tuple[SearchMode, ...] = get_args(SearchMode)
# What a hybrid search takes from each ranking, at least.
_DEPTH = 50


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A block that a search found: where its text begins in which document, and the text. ``score`` (higher is better)
    compares hits of one search only; ``ranks`` are its places, from 1, in the rankings that a hybrid search is made of."""

    block: int
    score: float
    source: str
    line: int
    text: str
    ranks: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**self.__dict__, "ranks": dict(self.ranks)}


class Searching(Layered):
    """What can be searched, and how."""

    @abstractmethod
    def text_of_blocks(self, snapshot: Snapshot, start: int, stop: int) -> str:
        """The text of blocks ``start:stop``."""

    def prepare(self, mode: SearchMode, reference: str | None = None, progress: Progress = silent) -> None:
        """Brings the derived indexes that a search needs up to date, slow the first time; ``search`` does so too."""
        snapshot = self.snapshot(reference)
        for needed, index in (("text", self.text_index), ("tokens", self.index)):
            if mode in (needed, "hybrid"):
                index.ensure(snapshot, progress)

    def search(
        self,
        query: str,
        limit: int = 10,
        reference: str | None = None,
        *,
        mode: SearchMode = "text",
        source: str | None = None,
        tags: Sequence[str] = (),
        since: float | None = None,
        until: float | None = None,
        allowed: Keep | None = None,
    ) -> list[Hit]:
        """The blocks that match ``query`` best, best first.

        ``text``: letter for letter, with "phrases in quotes" required; ``tokens``: BM25 over the tokens that the model reads;
        ``gists``: the nearest gists, from the top of the tree down, which needs the models; ``hybrid``: these, as far as the
        memory's model has them, made one by reciprocal rank fusion.

        Only documents with a ``source`` like a pattern such as ``*.py``, with all ``tags``, added at ``since`` or later and
        before ``until`` (seconds since 1970); only blocks that ``allowed`` (int64 [k] to bool [k]) lets pass. ConfigError for
        an unknown mode, or gists where there is no GistNet.
        """
        if mode not in MODES:
            raise ConfigError(f"no search mode {mode!r}: choose {', '.join(MODES)}")
        snapshot = self.snapshot(reference)
        filters = Filters(source=source, tags=tuple(tags), since=since, until=until)
        keep = both([filters.allowed(snapshot) if filters else None, allowed])
        if mode != "hybrid":
            return self._hits(snapshot, self._ranked(mode, snapshot, query, limit, keep), {})
        parts = [each for each in MODES if each != "hybrid" and (each != "gists" or self.models.gists is not None)]
        rankings = {each: self._ranked(each, snapshot, query, max(limit, _DEPTH), keep).blocks for each in parts}
        return self._hits(snapshot, fused(list(rankings.values()), limit), {at: r.tolist() for at, r in rankings.items()})

    def _ranked(self, mode: str, snapshot: Snapshot, query: str, limit: int, keep: Keep | None) -> Hits:
        if mode == "text":
            return self.text_index.search(snapshot, query, limit, None, keep)
        ids = np.asarray(self.tokenizer.encode(query, add_special_tokens=False).ids, dtype=np.int64)
        if mode == "tokens":
            return self.index.search(snapshot, ids, limit, None, keep)
        return self._by_gists(snapshot, ids, limit, keep)

    def _by_gists(self, snapshot: Snapshot, ids: np.ndarray[Any, np.dtype[np.int64]], limit: int, keep: Keep | None) -> Hits:
        from megacontext.engine.gist_query import encoded, entries_of
        from megacontext.engine.regist import check_layer
        from megacontext.index import gists

        models = self.models
        if models.gists is None:
            raise ConfigError(f"{self.model} has no GistNet to search by gists with: search by text or by tokens instead")
        check_layer(snapshot, models.gists, self.model)
        if not len(ids) or not snapshot.blocks:
            return NOTHING
        layer, entries = snapshot.layer(models.gists.fingerprint), entries_of(models.gists.layout)
        return gists.search(snapshot, layer, encoded(models, ids), entries, limit, allowed=keep).hits

    def _hits(self, snapshot: Snapshot, found: Hits, rankings: dict[str, list[int]]) -> list[Hit]:
        lines = snapshot.spans_at(found.blocks)[1].tolist()
        return [
            Hit(
                block=block,
                score=score,
                source=snapshot.document_of(block).source,
                line=line,
                text=self.text_of_blocks(snapshot, block, block + 1),
                ranks={name: blocks.index(block) + 1 for name, blocks in rankings.items() if block in blocks},
            )
            for block, score, line in zip(found.blocks.tolist(), found.scores.tolist(), lines, strict=True)
        ]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The memory's own tokenizer, from the files that it keeps; light."""
        from megacontext.engine.tokenizer_files import light_tokenizer

        return light_tokenizer(self.repository.root / "tokenizer", self.repository.info.tokenizer_files)

    @cached_property
    def index(self) -> FullTextIndex:
        """The derived index of tokens; made and repaired by itself."""
        return FullTextIndex(self.repository.root, special_ids=self._special_ids)

    @cached_property
    def text_index(self) -> TextIndex:
        """The derived index of text; made and repaired by itself."""

        def decode(rows: Sequence[Sequence[int]]) -> list[str]:
            texts: list[str] = self.tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=True)
            return texts

        return TextIndex(self.repository.root, decode)

    @property
    def _special_ids(self) -> list[int]:
        """Tokens that mean nothing to a search: end of text, padding and the like."""
        return [id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special]
