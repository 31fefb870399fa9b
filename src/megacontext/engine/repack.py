"""Repack: dead blocks that are more than half of a region are left out, and what lives moves together.

Texts, their order, tags and labels stay; what a window shows is then what it would show of a memory that was given the live
documents alone, and costs the same. Older commits read as before.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from megacontext.core import Timeline
from megacontext.engine.gist_builder import F16, U8, U32, Frontier, GistBuilder, NewGists
from megacontext.errors import BranchLocked, DetailPruned
from megacontext.models.base_lm import BaseLM
from megacontext.models.gistnet import GistEncoder
from megacontext.storage import Layer, LayerSpec, Repository, Snapshot, audit
from megacontext.storage.packing import Packing, region

# Below so many dead segments nothing is repacked by itself.
DUE_SEGMENTS = 4


@dataclass(frozen=True, kw_only=True)
class Repacked:
    """What a repack did, or in a dry run would do: from block ``first`` on ``moved`` live blocks were written anew and
    ``freed`` dead ones left out, so that ``blocks`` are left, ``dead`` of them. ``cut`` are layers of other GistNets that
    end at ``first`` now. Where nothing was to be done ``freed`` is 0, and ``commit`` where the branch was."""

    branch: str
    commit: str
    first: int
    moved: int
    freed: int
    blocks: int
    dead: int
    cut: tuple[str, ...]
    dry_run: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "cut": list(self.cut)}


def repack(
    repository: Repository,
    base: BaseLM | None,
    encoder: GistEncoder | None,
    *,
    branch: str | None = None,
    everything: bool = False,
    dry_run: bool = False,
    message: str = "",
    author: str = "",
) -> Repacked:
    """Leaves out the dead blocks of a branch (default: the current one), from the first segment from which on more than half is
    dead, or ``everything`` that is dead.

    ``base`` and ``encoder`` build the gists above level 1; None where there are none. Holds the branch: raises BranchLocked
    while somebody else writes it.
    """
    started = time.perf_counter()
    name, size = branch or repository.head, repository.info.segment_blocks
    builder = GistBuilder(base, encoder) if base is not None and encoder is not None else None
    if dry_run:
        plan = _Plan(repository.snapshot(name), size, everything, builder)
        return plan.result(name, plan.before.commit_name, dry_run=True, seconds=time.perf_counter() - started)
    with repository.repacker(name) as repacker:
        plan, commit = _Plan(repacker.before, size, everything, builder), repacker.commit_name
        if plan.freed:
            message = message or f"Repack: {plan.freed:,} dead blocks left out"
            commit = repacker.rewrite(plan.first, layer=plan.layer, make=plan.maker(), message=message, author=author)
            details = {"branch": name, "commit": commit, "first": plan.first, "freed": plan.freed}
            audit.append(repository.root, "repack", details, author=author)
        return plan.result(name, commit, dry_run=False, seconds=time.perf_counter() - started)


def repack_if_due(
    repository: Repository, base: BaseLM | None, encoder: GistEncoder | None, *, branch: str | None = None, author: str = ""
) -> Repacked | None:
    """Repacks a branch of which so much is dead that it should be; None where it is not, where somebody else writes it, and
    where raw tokens of what would move are archived."""
    if due(repository.snapshot(branch), repository.info.segment_blocks):
        with suppress(BranchLocked, DetailPruned):
            return repack(repository, base, encoder, branch=branch, author=author)
    return None


def due(snapshot: Snapshot, segment_blocks: int) -> bool:
    """Whether so much of a branch is dead that it should be repacked: more than half, and some segments in all."""
    dead = snapshot.blocks - snapshot.timeline().live_blocks
    return 2 * dead > snapshot.blocks and dead >= DUE_SEGMENTS * segment_blocks


class _Plan:
    """What to do about a snapshot."""

    def __init__(self, before: Snapshot, segment_blocks: int, everything: bool, builder: GistBuilder | None) -> None:
        timeline = before.timeline()
        first = region(timeline, segment_blocks, everything=everything)
        self.before, self._builder = before, builder
        self.first = before.blocks if first is None else first
        self._packing = Packing(self.first, before.blocks, timeline.dead)
        self.freed = before.blocks - self._packing.blocks
        known = before.layers
        self.layer: LayerSpec | None = None
        if builder is not None:
            mine = builder.spec.fingerprint
            current = known.get(mine) == before.blocks and mine not in before.stale_layers
            self.layer = builder.spec if current else None

    def maker(self) -> _Maker | None:
        """What builds the gists of the layer."""
        if self.layer is None or self._builder is None:
            return None
        return _Maker(self._builder, self.before.layer(self.layer.fingerprint), self._packing)

    def result(self, branch: str, commit: str, *, dry_run: bool, seconds: float) -> Repacked:
        mine = self.layer.fingerprint if self.layer else ""
        cut = [name for name, blocks in self.before.layers.items() if name != mine and blocks > self.first]
        return Repacked(
            branch=branch,
            commit=commit,
            first=self.first,
            moved=self._packing.blocks - self.first,
            freed=self.freed,
            blocks=self._packing.blocks,
            dead=sum(stop - start for start, stop in self._packing.kept_dead),
            cut=tuple(sorted(cut)),
            dry_run=dry_run,
            seconds=seconds,
        )


class _Maker:
    """Builds a layer anew behind the first block of a packing, from level 1 gists that are there."""

    def __init__(self, builder: GistBuilder, layer: Layer, packing: Packing) -> None:
        self._builder = builder
        self._frontier = Frontier(_Before(layer, packing.first))
        self._timeline = Timeline(blocks=packing.blocks, dead=tuple(packing.kept_dead))

    def __call__(self, ids: U32, fill: U8, level_one: F16) -> NewGists:
        """The gists of all nodes that these blocks complete."""
        gists = self._builder.extend(self._frontier, ids, fill, timeline=self._timeline, level_one=level_one)
        self._frontier.add(len(ids), gists)
        return gists


class _Before:
    """The first blocks of a layer."""

    def __init__(self, layer: Layer, blocks: int) -> None:
        self._layer, self.blocks = layer, blocks

    def gists(self, lod: int, start: int, stop: int) -> F16:
        """See `StoredGists`: of nodes that lie before the end, the same as ever."""
        return self._layer.gists(lod, start, stop)
