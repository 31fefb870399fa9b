"""Labels for LensNet: what having a block raw instead of as its gist really saves, by counterfactual passes.

A label belongs to a window snapshot: an item, and which of its far blocks stand raw (``state``). Some states are what a
policy reaches, the others have all gists. A block's worth is the NLL with its gist minus that with its tokens, all others
as in the state: for a gist the gain of an expansion, for a raw block the loss of a collapse. It is kept for every token of the
horizon, so that one set of passes serves every decision point and every interval.

Shapes: n items, k far blocks, m labelled blocks of an item, H tokens of horizon, p decision points, q query tokens, F features,
W numbers of a gist.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from megacontext.core import BLOCK
from megacontext.engine.evidence import FEATURES, block_features, suffix_runs
from megacontext.engine.policies import FocusView
from megacontext.engine.policies.lens import Lens
from megacontext.errors import InvariantError
from megacontext.evaluation.arms import Item, make_reader, window_of
from megacontext.evaluation.gists import blocks_of, encode_blocks
from megacontext.evaluation.items import IntArray, Items
from megacontext.evaluation.scoring import Scorer
from megacontext.evaluation.worth import worth_of_sets
from megacontext.models import BaseLM, GistEncoder
from megacontext.models.positions import window_ranks

QUERY = 128
# Blocks that a policy has raw at a quarter of a far context of 896 tokens.
RAW = 6
# Labels are kept as float16, and batches of another size round differently.
_ROUNDING = 0.01
_NAMES = ("ids", "state", "blocks", "worth")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """``ids`` uint32 [n, far + tail + H]; ``state`` int8 [n, k], 0 where raw; ``blocks`` int64 [n, m] that were labelled;
    ``worth`` float16 [n, m, H]: nats that each scored token is cheaper when the block is raw."""

    ids: npt.NDArray[np.uint32]
    state: npt.NDArray[np.int8]
    blocks: IntArray
    worth: npt.NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def context(self) -> int:
        """Tokens before the first scored one."""
        return int(self.ids.shape[1] - self.worth.shape[2])


@dataclass(frozen=True, kw_only=True)
class Points:
    """Decision points, replayed from window snapshots: ``features`` float32 [p, m, F], ``gain`` float32 [p, m] (nats per token
    over the next interval), ``query`` int64 [p, q], ``blocks`` int64 [p, m] and ``item`` int64 [p]."""

    features: npt.NDArray[np.float32]
    gain: npt.NDArray[np.float32]
    query: IntArray
    blocks: IntArray
    item: IntArray

    def __len__(self) -> int:
        return len(self.gain)


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """How many ``blocks`` of each item are labelled (at most), and for which share of the items the state is ``on_policy``:
    the blocks that ``policy`` would open, or those of the longest suffix matches where there is none."""

    blocks: int = 14
    on_policy: float = 0.5
    policy: Lens | None = None
    seed: int = 0


def measure_labels(
    base: BaseLM,
    encoder: GistEncoder,
    items: Items,
    labelling: Labelling,
    *,
    folder: Path,
    progress: Callable[[], None] = lambda: None,
) -> Labels:
    """Label every item, or read what an earlier run wrote to ``folder``; parts are saved as they are made.

    Files carry a name made from models, items and labelling, so labels of something else are never taken for these, and of a
    file that was read a few labels are measured again: InvariantError where they are others (shuffled, turned round).
    """
    stem = f"labels-{_name(base, encoder, items, labelling)}"
    path = folder / f"{stem}.safetensors"
    scorer = Scorer(base=base, encoder=encoder, strategy=window_ranks(encoder))
    if path.is_file():
        labels = Labels(**load_file(str(path)))
        for row in sorted({0, len(items) // 2, len(items) - 1}):
            _check(labels, row, _item(items, row, encoder, base), scorer, path)
        return labels
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Labels] = []
    for row in range(len(items)):
        part = folder / f"{stem}-{row:05d}.part"
        if part.is_file():
            parts.append(Labels(**load_file(str(part))))
        else:
            parts.append(_label(_item(items, row, encoder, base), scorer, labelling))
            _save(parts[-1], part)
        progress()
    labels = Labels(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in _NAMES})
    _save(labels, path)
    for part in folder.glob(f"{stem}-*.part"):
        part.unlink()
    return labels


def replay(labels: Labels, interval: int, *, stride: int | None = None, names: Sequence[str] = FEATURES) -> Points:
    """The decision points every ``stride`` tokens (None: ``interval``) that have a whole interval behind them."""
    features, gains, queries, blocks, rows = [], [], [], [], []
    horizon = labels.worth.shape[2]
    for row in range(len(labels)):
        far = labels.state.shape[1]
        ids, chosen = labels.ids[row].astype(np.int64), labels.blocks[row]
        raw = blocks_of(ids[: far * BLOCK]).astype(np.uint32)
        for at in range(0, horizon - interval + 1, stride or interval):
            seen = labels.context + at
            query = ids[seen - QUERY : seen]
            found = block_features(
                raw,
                np.full(far, BLOCK, dtype=np.uint8),
                query,
                distance=seen - np.arange(far) * BLOCK,
                same_document=np.ones(far, dtype=np.bool_),
                names=names,
            )
            features.append(found[chosen])
            gains.append(labels.worth[row, :, at : at + interval].astype(np.float32).mean(axis=1))
            queries.append(query)
            blocks.append(chosen)
            rows.append(row)
    columns = (features, gains, queries, blocks)
    stacked = [np.stack(column) for column in columns]
    return Points(features=stacked[0], gain=stacked[1], query=stacked[2], blocks=stacked[3], item=np.array(rows))


def gists_of(labels: Labels, base: BaseLM, encoder: GistEncoder) -> npt.NDArray[np.float16]:
    """The gists of every item's labelled blocks, the mean of a node's vectors: float16 [n, m, W]."""
    far = labels.state.shape[1] * BLOCK
    made = []
    for ids, chosen in zip(labels.ids, labels.blocks, strict=True):
        blocks = blocks_of(ids[:far].astype(np.int64))[chosen]
        made.append(encode_blocks(blocks, base, encoder).astype(np.float32).mean(axis=1).astype(np.float16))
    return np.stack(made)


def _item(items: Items, row: int, encoder: GistEncoder, base: BaseLM) -> Item:
    ids = items.ids[row]
    return Item(ids=ids, far=items.far, tail=items.tail, reader=make_reader(ids, encoder, base), row=row)


def _check(labels: Labels, row: int, item: Item, scorer: Scorer, path: Path) -> None:
    """Measure one label of an item again."""
    block = labels.blocks[row, :1]
    again = worth_of_sets(item, scorer, labels.state[row], [block])[0]
    same = np.allclose(again, labels.worth[row, 0].astype(np.float64), rtol=_ROUNDING, atol=_ROUNDING)
    if not (same and np.array_equal(labels.ids[row], item.ids)):
        told = float(labels.worth[row, 0].mean())
        raise InvariantError(
            f"{path} says that block {int(block[0])} of item {row} is worth {told:+.4f} nats a token, "
            f"but measured again it is {float(again.mean()):+.4f}: delete the file and label anew"
        )


def _label(item: Item, scorer: Scorer, labelling: Labelling) -> Labels:
    rng = np.random.default_rng((labelling.seed, item.row))
    state = np.ones(item.blocks, dtype=np.int8)
    if rng.random() < labelling.on_policy:
        state[_reached(item, labelling.policy)] = 0
    count = min(labelling.blocks, item.blocks)
    blocks = np.sort(rng.choice(item.blocks, count, replace=False))
    worth = worth_of_sets(item, scorer, state, [blocks[at : at + 1] for at in range(count)])
    return Labels(
        ids=item.ids[None].astype(np.uint32),
        state=state[None],
        blocks=blocks[None].astype(np.int64),
        worth=worth[None].astype(np.float16),
    )


def _reached(item: Item, policy: Lens | None) -> IntArray:
    """The far blocks that a policy has raw when the horizon begins."""
    query = item.ids[max(0, item.context - QUERY) : item.context]
    if policy is None:
        worth = suffix_runs(blocks_of(item.ids[: item.far]), query).max(axis=1).astype(np.float32)
    else:
        window = window_of(item, np.ones(item.blocks, dtype=np.int8), item.context)
        worth = policy.worth(FocusView(window=window, reader=item.reader, query=query), np.arange(item.blocks))
    best: IntArray = np.argsort(-worth, kind="stable")[:RAW]
    return best


def _name(base: BaseLM, encoder: GistEncoder, items: Items, labelling: Labelling) -> str:
    policy = labelling.policy.net.fingerprint if labelling.policy is not None else "suffix"
    facts = (base.fingerprint, encoder.fingerprint, items.digest, labelling.blocks, labelling.on_policy, policy, labelling.seed)
    return hashlib.blake2b("/".join(str(fact) for fact in facts).encode(), digest_size=6).hexdigest()


def _save(labels: Labels, path: Path) -> None:
    partial = path.with_suffix(".writing")
    save_file({name: getattr(labels, name) for name in _NAMES}, str(partial))
    partial.replace(path)
