"""What a reader may not see, over all branches.

Labels are policy, not history: a label counts for every commit that holds the same blocks, also for an older one, and on
another branch. So what is denied at a commit is what its own labels say, and what those of every branch and tag say of
the blocks that it shares with them: two timelines share the blocks up to the first one that differs. Labels that its own
were made from do not count again: they may have been taken off since.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from megacontext.core.ranges import BlockRange, joined
from megacontext.errors import AccessDenied, MissingObject
from megacontext.storage.commit import Commit, load_commit, load_tokens
from megacontext.storage.labels import Ranges, load_labels
from megacontext.storage.merkle import differing, get
from megacontext.storage.objects import ObjectReader
from megacontext.storage.refs import BRANCHES, TAGS, Refs
from megacontext.storage.segment import TOKENS, TokenTree
from megacontext.storage.tensors import Array

WITHHELD = "(withheld from a reader that is denied something)"


@dataclass(frozen=True)
class Access:
    """A reader that is denied the labels in `deny` (at least one)."""

    deny: frozenset[str]
    refs: Refs
    reader: ObjectReader
    segment_blocks: int

    def elsewhere(self, commit: str) -> Ranges:
        """The blocks of a commit that other branches and tags deny. Reads each of their commits, and of those with labels
        of their own as much as it takes to find where the timelines part."""
        mine = load_commit(self.reader, commit)
        names = {self.refs.read(kind, name) for kind in (BRANCHES, TAGS) for name in self.refs.names(kind)}
        theirs = {name: load_commit(self.reader, name) for name in names - {None, commit} if name is not None}
        found: list[BlockRange] = []
        settled = self._settled(mine.labels, {other.labels for other in theirs.values()})
        for other in theirs.values():
            held = load_labels(self.reader, other.labels).held(self.deny) if other.labels not in settled else ()
            if held:
                shared = self._shared(load_tokens(self.reader, mine), load_tokens(self.reader, other))
                found += ((start, min(stop, shared)) for start, stop in held if start < shared)
        return joined(found)

    def _settled(self, name: str, wanted: set[str]) -> set[str]:
        """Which of the `wanted` labels objects the one called `name` was made from, itself included."""
        found, left = {""}, wanted - {""}
        while name and left:
            found.add(name)
            left.discard(name)
            try:
                name = load_labels(self.reader, name).before
            except MissingObject:  # that far back, history was cut off
                break
        return found

    def _shared(self, left: TokenTree, right: TokenTree) -> int:
        """How many first blocks two timelines have in common."""
        whole = min(left.strand.segments.count, right.strand.segments.count)
        first = min(next(differing(self.reader, left.strand.segments, right.strand.segments), whole), whole)
        start = first * self.segment_blocks
        mine, theirs = (self._rows(tree, first, tree.blocks - start) for tree in (left, right))
        count = min(len(mine), len(theirs))
        differs = (mine[:count] != theirs[:count]).any(axis=1)
        return start + (int(differs.argmax()) if differs.any() else count)

    def _rows(self, tree: TokenTree, segment: int, count: int) -> Array:
        """Ids and fill of the blocks of a segment, or of what is behind the last one: int64 [k, 33]."""
        strand = tree.strand
        names = [get(self.reader, strand.segments, segment)] if segment < strand.segments.count else strand.pages
        objects = [self.reader.tensors(name, TOKENS).arrays for name in names]
        rows = [np.column_stack((arrays["ids"].astype(np.int64), arrays["fill"])) for arrays in objects]
        return np.concatenate(rows)[:count] if rows else np.zeros((0, 33), np.int64)


def shown_commit(commit: Commit, *, whole: bool) -> Commit:
    """A commit as a reader sees it: its message may quote anything, so who is denied something does not get it."""
    return commit if whole or not commit.message else replace(commit, message=WITHHELD)


def refuse_denied(access: Access | None, what: str) -> None:
    """Raises AccessDenied for a reader that is denied anything, where `what` reads past the guard."""
    if access is not None:
        raise AccessDenied(
            f"{what} would read what this reader is denied ({', '.join(sorted(access.deny))}): open the memory without deny"
        )
