"""The searches of a memory as focus policies see them: bound to one snapshot, so that they find what a window shows."""

from __future__ import annotations

import numpy as np

from megacontext.core import BLOCK
from megacontext.engine.bundle import Bundle
from megacontext.engine.policies.base import FloatArray, IntArray, Searches, Searching, no_search
from megacontext.index.fulltext import FullTextIndex
from megacontext.index.gists import search as search_gists
from megacontext.index.suffix import SuffixIndex
from megacontext.storage import Snapshot


def searches_of(words: FullTextIndex, suffixes: SuffixIndex, bundle: Bundle) -> Searching:
    """Searches through a memory's indexes; by gists, too, where the bundle has a GistNet and the snapshot its layer."""

    def bound(snapshot: Snapshot) -> Searches:
        def by_words(query: IntArray, limit: int) -> tuple[IntArray, FloatArray]:
            return words.search(snapshot, query, limit)

        def by_suffix(query: IntArray, each: int, stop: int) -> tuple[IntArray, IntArray]:
            return suffixes.find(snapshot, query, each=each, stop=stop)

        def by_gists(query: IntArray, limit: int) -> tuple[IntArray, FloatArray]:
            from megacontext.engine.gist_query import encoded, entries_of

            gists = bundle.gists
            if gists is None or gists.fingerprint not in snapshot.layers or not len(query) or snapshot.blocks == 0:
                return no_search(query, limit)
            layer, entries = snapshot.layer(gists.fingerprint), entries_of(gists.layout)
            return search_gists(snapshot, layer, encoded(bundle, np.asarray(query[-BLOCK:])), entries, limit).hits

        return Searches(words=by_words, suffixes=by_suffix, gists=by_gists)

    return bound
