"""LensNet as a focus policy: learned utility of having each block raw.

Direction: positive where reading the block raw would lower the NLL of what comes next by more than it
costs. Blocks below high-level gists cannot be seen in the window; the index proposes some, and LensNet
scores them like entries.
"""

from __future__ import annotations

import numpy as np
import torch

from megacontext.core import FocusScores, Targets
from megacontext.engine.evidence import FEATURES, block_features
from megacontext.engine.policies.base import FocusView, IntArray
from megacontext.errors import ModelMismatch
from megacontext.models import BaseLM, LensNet


class Lens:
    """Score blocks with a LensNet; ``candidates`` blocks a refocus are proposed by the index."""

    name = "lens"

    def __init__(self, lens: LensNet, base: BaseLM, *, candidates: int = 32) -> None:
        if lens.config.feature_names != FEATURES:
            raise ModelMismatch("this LensNet was trained on other features: run megacontext train lens again")
        self._lens, self._base, self._candidates = lens, base, candidates

    def score(self, view: FocusView) -> FocusScores:
        """See ``FocusPolicy.score``; entries of LOD 2 and above score 0 and open through targets."""
        window = view.window
        entries = np.zeros(len(window), dtype=np.float32)
        near = np.flatnonzero((window.lod <= 1) & ~window.timeline.pruned_mask(window.lod, window.index))
        proposed = self._proposals(view)
        blocks = np.concatenate([window.index[near], proposed])
        if not len(blocks) or not len(view.query):
            return FocusScores(entries)
        worth = self.worth(view, blocks)
        # What was learned is the worth of a block against the others at the same moment; on a history that is unlike
        # the training's, all of them may lie to one side of zero.
        worth = np.clip(worth - np.median(worth), -1, 1).astype(np.float32)
        entries[near] = worth[: len(near)]
        gains = worth[len(near) :]
        wanted = gains > 0
        return FocusScores(entries, Targets(proposed[wanted], gains[wanted]))

    def _proposals(self, view: FocusView) -> IntArray:
        blocks, _ = view.search(view.query[-32:], self._candidates)
        at = view.window.covering(blocks)
        below = (at >= 0) & (view.window.lod[np.maximum(at, 0)] > 1)
        return blocks[below]

    def worth(self, view: FocusView, blocks: IntArray) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """Utility of reading ``blocks`` int64 [k] raw, float32 [k] in [-1, 1]."""
        reader = view.reader
        features = block_features(
            reader.tokens_at(blocks),
            reader.fill_at(blocks),
            view.query,
            distance=view.window.timeline.tokens - blocks * 32,
            same_document=reader.documents_at(blocks) == view.document,
        )
        gists = torch.from_numpy(reader.gists_at(1, blocks).astype(np.float32)).mean(dim=1)
        query = torch.from_numpy(view.query[-self._lens.config.tail :])
        with torch.no_grad():
            scores = self._lens(
                torch.from_numpy(features)[None],
                gists[None],
                self._base.embed(query[None]).float(),
                torch.ones(1, len(blocks), dtype=torch.int64),
            )
        result: np.ndarray[tuple[int], np.dtype[np.float32]] = scores[0].numpy()
        return result
