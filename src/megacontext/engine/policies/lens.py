"""LensNet as a focus policy: learned utility of having each block raw.

Direction: positive where reading the block raw instead of its gist lowers the NLL of what comes next. Unit: nats per token
over the next refocus interval where the LensNet is calibrated, else [-1, 1] against the other blocks of the moment. Blocks
below high-level gists cannot be seen in the window; the index proposes some, and LensNet scores them like entries.

Shapes: V views, n blocks of a view (padded to the most), t tail slots, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from megacontext.core import BLOCK, FocusScores, Targets
from megacontext.engine.evidence import FEATURES, block_features
from megacontext.engine.policies.base import FloatArray, FocusView, IntArray
from megacontext.errors import ModelMismatch
from megacontext.models import BaseLM, LensNet


class _Asked(NamedTuple):
    """The blocks that one view asks about: those of ``near`` entries first, then proposed ones."""

    view: FocusView
    near: IntArray
    blocks: IntArray


class Lens:
    """Score blocks with a LensNet; ``candidates`` blocks a refocus are proposed by the index.

    ModelMismatch for a LensNet that was trained on features which are not known here.
    """

    name = "lens"

    def __init__(self, lens: LensNet, base: BaseLM, *, candidates: int = 32) -> None:
        if not lens.config.feature_names or not set(lens.config.feature_names) <= set(FEATURES):
            raise ModelMismatch("this LensNet was trained on other features: run megacontext train lens again")
        self._lens, self._base, self._candidates = lens, base, candidates

    @property
    def net(self) -> LensNet:
        """The network; policies that share it can be scored together."""
        return self._lens

    @property
    def centred(self) -> bool:
        """Whether scores only mean something against those of other blocks at the same moment."""
        return self._lens.config.unit == "relative"

    def score(self, view: FocusView) -> FocusScores:
        """See ``FocusPolicy.score``; entries of LOD 2 and above score 0 and open through targets."""
        return self.score_many([view])[0]

    def score_many(self, views: Sequence[FocusView]) -> list[FocusScores]:
        """``score`` of each view, in one pass of the network."""
        asked = [self._asked(view) for view in views]
        worths = self._worths([(each.view, each.blocks) for each in asked])
        return [self._scores(each, worth) for each, worth in zip(asked, worths, strict=True)]

    def worth(self, view: FocusView, blocks: IntArray) -> FloatArray:
        """Utility of reading ``blocks`` int64 [k] raw, wherever in the tree they are: float32 [k], not centred."""
        return self._worths([(view, blocks)])[0]

    def _asked(self, view: FocusView) -> _Asked:
        window = view.window
        near = np.flatnonzero((window.lod <= 1) & ~window.timeline.pruned_mask(window.lod, window.index))
        return _Asked(view, near, np.concatenate([window.index[near], self._proposals(view)]))

    def _proposals(self, view: FocusView) -> IntArray:
        blocks, _ = view.search(view.query[-32:], self._candidates)
        at = view.window.covering(blocks)
        below = (at >= 0) & (view.window.lod[np.maximum(at, 0)] > 1)
        return blocks[below]

    def _scores(self, asked: _Asked, worth: FloatArray) -> FocusScores:
        entries = np.zeros(len(asked.view.window), dtype=np.float32)
        if not len(asked.blocks):
            return FocusScores(entries)
        if self.centred:
            # On a history that is unlike the training's, all blocks may lie to one side of zero.
            worth = np.clip(worth - np.median(worth), -1, 1).astype(np.float32)
        count = len(asked.near)
        entries[asked.near] = worth[:count]
        gains, proposed = worth[count:], asked.blocks[count:]
        wanted = gains > 0
        return FocusScores(entries, Targets(proposed[wanted], gains[wanted]))

    def _worths(self, asked: Sequence[tuple[FocusView, IntArray]]) -> list[FloatArray]:
        """What each view's blocks are worth; nothing without a query."""
        worths = [np.zeros(len(blocks), dtype=np.float32) for _, blocks in asked]
        some = [at for at, (view, blocks) in enumerate(asked) if len(blocks) and len(view.query)]
        if not some:
            return worths
        config = self._lens.config
        features = _padded([self._features(*asked[at]) for at in some])
        valid = _padded([torch.ones(len(asked[at][1]), dtype=torch.bool) for at in some])
        # Without layers the scores come from the features alone.
        reads = config.layers > 0
        gists = [_gists(*asked[at]) if reads else torch.zeros(len(asked[at][1]), self._gist_width) for at in some]
        query = [torch.from_numpy(asked[at][0].query[-config.tail :]) for at in some]
        tail = [self._base.embed(ids[None])[0].float() if reads else torch.zeros(1, config.width) for ids in query]
        with torch.no_grad():
            scores = self._lens(
                features,
                _padded(gists),
                # The newest slot comes last, so what is missing is missing on the left.
                _padded([each.flip(0) for each in tail]).flip(1),
                torch.ones(valid.shape, dtype=torch.int64),
                valid=valid,
                tail_valid=_padded([torch.ones(len(each), dtype=torch.bool) for each in tail]).flip(1),
            )
        for at, row in zip(some, scores.numpy(), strict=True):
            worths[at] = row[: len(worths[at])].astype(np.float32)
        return worths

    @property
    def _gist_width(self) -> int:
        return self._lens.config.gist_width or self._lens.config.width

    def _features(self, view: FocusView, blocks: IntArray) -> Tensor:
        reader = view.reader
        found = block_features(
            reader.tokens_at(blocks),
            reader.fill_at(blocks),
            view.query,
            distance=view.window.timeline.tokens - blocks * BLOCK,
            same_document=reader.documents_at(blocks) == view.document,
            names=self._lens.config.feature_names,
        )
        return torch.from_numpy(found)


def _gists(view: FocusView, blocks: IntArray) -> Tensor:
    return torch.from_numpy(view.reader.gists_at(1, blocks).astype(np.float32)).mean(dim=1)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows [n, …] side by side, zeros behind the shorter ones: [V, most n, …]."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
