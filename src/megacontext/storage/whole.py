"""Reading past stubs: objects as they were before anything of them was pruned, as far as their archives are at hand.

For what makes objects of others, such as a repack: a name is the hash of whole bytes, so who writes needs them; what is pruned
goes back to the archive (`LocalObjectStore.put_pruned`). What people read goes through an ordinary `ObjectReader`.
"""

from __future__ import annotations

from pathlib import Path

from megacontext.core.ranges import BlockRange
from megacontext.errors import DetailPruned
from megacontext.storage.objects import LocalObjectStore, ObjectReader
from megacontext.storage.stubs import TOKENS, Stubs
from megacontext.storage.tensors import Array


class WholeStore(LocalObjectStore):
    """The objects of the memory at `root`; what is not in its place is read in its archive. Raises MissingObject where that
    does not have it."""

    def __init__(self, root: Path, staging: str = "unused") -> None:
        super().__init__(root / "objects", root / "staging" / staging)
        self.stubs = Stubs(root)

    def get(self, name: str) -> bytes:
        """See `ObjectStore`."""
        try:
            return super().get(name)
        except DetailPruned:
            return self.stubs.archived(name)

    def view(self, name: str) -> memoryview:
        """See `ObjectStore`."""
        try:
            return super().view(name)
        except DetailPruned:
            return memoryview(self.stubs.archived(name))

    def pruned_rows(self, name: str) -> tuple[BlockRange, ...]:
        """Which rows of a segment or page of tokens are pruned."""
        stub = None if self.has(name) else self.stubs.load(name)
        return stub.ranges if stub else ()


class ArchiveReader(ObjectReader):
    """Reads a memory as if all had been restored that is at hand; only what is not counts as pruned."""

    def __init__(self, store: WholeStore, keep: int = 8192) -> None:
        super().__init__(store, keep, store.stubs)

    def there(self, name: str) -> bool:
        """Whether an object is in its place or can be read in its archive."""
        return self.store.has(name) or (self.stubs is not None and self.stubs.at_hand(name))


class WholeReader(ObjectReader):
    """Reads whole objects, or raises MissingObject. Which rows are pruned is told all the same: for who writes."""

    whole = True

    def __init__(self, store: WholeStore, keep: int = 256) -> None:
        super().__init__(store, keep, store.stubs)
        self._whole = store

    def blocks(self, name: str) -> tuple[dict[str, Array], tuple[BlockRange, ...]]:
        """All rows of a segment or page of tokens, and which of them are pruned."""
        arrays = self.tensors(name, TOKENS).arrays
        return arrays, self._whole.pruned_rows(name)
