"""Windows in miniature, as the base would be shown them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from megacontext.core import BLOCK
from megacontext.engine.assemble import Slots


def slots_with_gist(gists: Tensor, raw: npt.NDArray[np.int64]) -> Slots:
    """The vectors float16 [g, W] of block 0 as slots, then ``raw`` int64 [k] behind it."""
    count = len(gists)
    edges = np.arange(count + 1) * BLOCK // count
    gist = Slots(
        token=np.full(count, -1),
        start=edges[:-1],
        stop=edges[1:],
        entry=np.zeros(count, dtype=np.int64),
        vectors=gists.numpy(),
    )
    return gist.then(raw, BLOCK, 1)
