"""What a branch holds, in numbers: for people who ask `megacontext status`, and for checks before something is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from megacontext.core import BLOCK
from megacontext.storage import Repository, Snapshot
from megacontext.storage.underway import UnderWay


@dataclass(frozen=True, kw_only=True)
class LayerStatus:
    """The gists of one GistNet: they cover ``blocks`` complete blocks of a branch and lack the ``behind`` newest; where they
    are ``stale``, some still hold blocks that are dead by now."""

    fingerprint: str
    blocks: int
    behind: int
    stale: bool = False

    @property
    def current(self) -> bool:
        """Whether the layer is that of all that is there now."""
        return not (self.behind or self.stale)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Status:
    """``documents`` are the live ones, with ``tokens`` real tokens; ``dead`` of the ``blocks`` belonged to others. ``levels``
    maps each LOD to its complete nodes; ``layers`` are the gists that lie over them; ``under_way`` is a document that is not
    finished, and in none of these numbers."""

    path: str
    branch: str
    commit: str
    documents: int
    tokens: int
    blocks: int
    dead: int
    levels: Mapping[int, int]
    layers: tuple[LayerStatus, ...]
    model: str
    under_way: UnderWay | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        way = asdict(self.under_way) if self.under_way else None
        levels = {str(lod): count for lod, count in self.levels.items()}
        return {**self.__dict__, "levels": levels, "layers": [each.to_json() for each in self.layers], "under_way": way}


def status_of(repository: Repository, model: str, reference: str | None = None) -> Status:
    """What a branch (default: the current one), tag or commit holds, as read by ``model``."""
    snapshot = repository.snapshot(reference)
    documents = list(snapshot.documents.live())
    return Status(
        path=str(repository.root),
        branch=reference or repository.head,
        commit=snapshot.commit_name,
        documents=len(documents),
        tokens=sum(document.tokens for document in documents),
        blocks=snapshot.blocks,
        dead=snapshot.blocks - snapshot.timeline().live_blocks,
        levels={0: snapshot.cursor} | _levels(snapshot.blocks),
        layers=layers_of(snapshot),
        model=model,
        under_way=repository.under_way(reference),
    )


def layers_of(snapshot: Snapshot) -> tuple[LayerStatus, ...]:
    """The gist layers that a snapshot sees, by fingerprint."""
    return tuple(
        LayerStatus(fingerprint=name, blocks=blocks, behind=snapshot.blocks - blocks, stale=name in snapshot.stale_layers)
        for name, blocks in sorted(snapshot.layers.items())
    )


def _levels(blocks: int) -> dict[int, int]:
    levels, lod = {}, 1
    while blocks:
        levels[lod] = blocks
        blocks, lod = blocks // BLOCK, lod + 1
    return levels
