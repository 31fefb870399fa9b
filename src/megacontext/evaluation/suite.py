"""The whole of ``bench quality``: from histories and a bundle to one JSON-ready result (BENCHMARKS §4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext.core import BLOCK
from megacontext.engine.bundle import Bundle
from megacontext.errors import ConfigError, DatasetError
from megacontext.evaluation import arms, quality
from megacontext.evaluation.arms import Arm
from megacontext.evaluation.gists import GistBank, blocks_of
from megacontext.evaluation.items import IntArray, Items, draw_items
from megacontext.evaluation.levels import LevelGeometry, measure_level
from megacontext.evaluation.measured import Measured, measure
from megacontext.evaluation.oracle import Gains
from megacontext.evaluation.overlap import without_seen
from megacontext.evaluation.reconstruction import reconstruction
from megacontext.evaluation.report import Figures, renamed
from megacontext.evaluation.scoring import Scorer
from megacontext.models.bi_encoder import BiEncoder
from megacontext.models.positions import window_ranks
from megacontext.models.reconstruction import ReconstructionHead

SCHEMA = 3
NAMES = (
    *("full", "drop", "recency", "recency_sinks", "suffix", "bm25", "dense", "mean", "rarest", "noise", "swapped", "gist"),
    *("random_expand", "recent_expand", "cosine", "megacontext", "oracle", "unneeded", "lod2", "lod3", "reconstruction"),
)
"""What ``--arms`` may name; ``full`` and ``drop`` always run."""
RECONSTRUCTED = 1024
"""Blocks that are read back from their gists."""
Stage = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""``(name, how many)`` → a context that gives what to call after each of them."""
Training = tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """What to measure. ``far`` None: the longest that the base can read raw.

    Arms that choose are renewed every ``renewal`` tokens, or at an interval of their own where ``own`` names one (chosen on
    other items). ``renewals``: every arm is also run at these intervals, beside ``renewal``, on ``renewal_items`` of the items.

    ``oracle_items``: on how many of the items the oracle runs, drawn at random (it costs a pass a block).
    ``arms``: empty for all, else names of ``NAMES``.
    """

    items: int = 300
    far: int | None = None
    tail: int = 128
    horizon: int = 64
    seed: int = 0
    renewal: int = 16
    renewals: tuple[int, ...] = ()
    renewal_items: int = 64
    own: Mapping[str, int] = field(default_factory=dict)
    budgets: tuple[str, ...] = quality.BUDGETS
    oracle_items: int = 64
    lod2_items: int = 64
    lod3_items: int = 24
    arms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.arms) - set(NAMES))
        if unknown:
            raise ConfigError(f"no arm named {', '.join(unknown)}: one of {', '.join(NAMES)}")
        if unknown := sorted(set(self.own) - quality.RENEWED):
            raise ConfigError(f"arms without a renewal interval: {', '.join(unknown)}")
        if min(self.items, self.renewal, *self.renewals, *self.own.values()) < 1:
            raise ConfigError("items and renewal intervals must be positive")

    def wants(self, name: str) -> bool:
        """Whether an arm is to be run."""
        return not self.arms or name in self.arms

    def interval(self, name: str) -> int:
        """The interval of an arm in the main figures."""
        return self.own.get(name, self.renewal)

    @property
    def intervals(self) -> tuple[int, ...]:
        """Every renewal interval, the default first."""
        return tuple(dict.fromkeys((self.renewal, *self.renewals)))


@dataclass(frozen=True, kw_only=True)
class Source:
    """Held-out ``histories``; ``closed_by`` is the token that ends each document, ``name`` says where they are from.

    ``training``: blocks [N, 32] and their fill [N] that the models learned from, where they are known.
    """

    histories: Sequence[IntArray]
    closed_by: int | None
    name: str
    training: Training | None = None


def run(
    bundle: Bundle,
    source: Source,
    config: QualityConfig,
    stage: Stage,
    *,
    head: ReconstructionHead | None = None,
    dense: BiEncoder | None = None,
) -> dict[str, Any]:
    """Everything that the configuration asks for and the bundle can do; keys that do not apply are absent.

    ``head`` reads the tokens of a block back from its gist, ``dense`` finds blocks by likeness, where they were trained.
    """
    far = config.far or quality.far_for(bundle.base, tail=config.tail, horizon=config.horizon)
    drawn = _draw(source, config, far=far, tail=config.tail, count=config.items)
    items, overlap = (drawn, {"checked": False}) if source.training is None else without_seen(drawn, *source.training)
    bank = GistBank(items, bundle.base, bundle.gists) if bundle.gists is not None else None
    result = _main(bundle, items, bank, config, stage, dense)
    for lod in (2, 3):
        found = _levels(bundle, source, config, lod, stage) if config.wants(f"lod{lod}") else None
        if found is not None:
            result[f"lod{lod}"] = found
    if head is not None and config.wants("reconstruction"):
        result["reconstruction"] = _reconstruction(bundle, items, head, config, stage)
    facts = {
        **asdict(config),
        **{"far": far, "items": len(items), "documents": len(np.unique(items.group)), "source": source.name},
        **{"histories": len(np.unique(items.histories)), "overlap": overlap, "positions": "window"},
        "resampled_by": "the history that the item is from"
        if source.closed_by is None
        else "the document that holds the item's first scored token",
        "base": bundle.base.fingerprint,
        "gistnet": bundle.gists.fingerprint if bundle.gists is not None else None,
        "lensnet": bundle.lens.fingerprint if bundle.lens is not None else None,
        "dense": dense.fingerprint if dense is not None else None,
        "vectors": bundle.gists.vectors if bundle.gists is not None else None,
        "gist_stride": window_ranks(bundle.gists).gist_stride,
    }
    cleaned: dict[str, Any] = finite({"schema": SCHEMA, "kind": "quality", "config": facts, **result})
    return cleaned


def _draw(source: Source, config: QualityConfig, *, far: int, tail: int, count: int, align: int = 1) -> Items:
    return draw_items(
        source.histories,
        far=far,
        tail=tail,
        horizon=config.horizon,
        count=count,
        seed=config.seed,
        closed_by=source.closed_by,
        align=align,
    )


def _main(
    bundle: Bundle, items: Items, bank: GistBank | None, config: QualityConfig, stage: Stage, dense: BiEncoder | None
) -> dict[str, Any]:
    """Gate, arms, differences, budgets, distances and the cost of gists that are not needed: all on the same items."""
    scorer = Scorer(base=bundle.base, encoder=bundle.gists, strategy=window_ranks(bundle.gists))
    gains = Gains(scorer) if bank is not None and config.oracle_items else None
    top = quality.gist_arms(bundle, items, bank=bank)
    chosen = {name: arm for name, arm in top.items() if config.wants(name) or name in ("full", "drop")}
    unneeded = quality.unneeded_arms(bundle, items, bank=bank) if config.wants("unneeded") else {}
    flat: dict[str, Arm] = {**chosen, **{f"unneeded/{name}": arm for name, arm in unneeded.items()}}
    for budget in config.budgets:
        flat |= _budget(bundle, items, config, budget, gains, dense)
    order = np.random.default_rng((config.seed, 0x04AC1E)).permutation(len(items))
    few = np.sort(order[: config.renewal_items])
    rows = {name: few for name in flat if name not in _main_keys(config) and "@" in name}
    for name in flat:
        if name.endswith("/oracle"):
            rows[name] = np.sort(order[: min(config.oracle_items, len(few) if name in rows else len(items))])
    with stage("items", len(items)) as advance:
        measured = measure(bundle.base, bundle.gists, items, flat, progress=advance, bank=bank, rows=rows, scorer=scorer)
    figures = Figures(renamed(measured, {name: name for name in chosen}), seed=config.seed)
    result: dict[str, Any] = {
        "gate": figures.gate(),
        "arms": {name: figures.arm(name) for name in chosen},
        "differences": figures.differences(quality.PAIRS),
        "budgets": {budget: _budget_figures(measured, budget, config, bundle, few) for budget in config.budgets},
        "by_distance": figures.by_distance(list(chosen)),
    }
    real = figures.real()
    if real is not None:
        result["real"] = real
    if unneeded:
        result["unneeded_cost"] = _unneeded(measured, config.seed)
    return result


def _key(budget: str, interval: int | None, name: str) -> str:
    return f"{budget}@{interval}/{name}" if interval is not None else f"{budget}/{name}"


def _main_keys(config: QualityConfig) -> set[str]:
    return {_key(budget, config.interval(name), name) for budget in config.budgets for name in quality.RENEWED}


def _budget(
    bundle: Bundle, items: Items, config: QualityConfig, budget: str, gains: Gains | None, dense: BiEncoder | None
) -> dict[str, Arm]:
    """The arms of one budget at every interval that is asked for, under keys of their own."""
    slots = quality.budget_slots(items.far, budget)
    if slots + items.tail + items.horizon > bundle.base.context_length:
        return {}
    found: dict[str, Arm] = {}
    for interval in sorted({*config.intervals, *config.own.values()}):
        made = quality.budget_arms(bundle, items, slots=slots, renewal=interval, gains=gains, dense=dense)
        for name, arm in made.items():
            asked = name not in quality.RENEWED or interval == config.interval(name)
            if config.wants(name) and (asked or (config.renewals and interval in config.intervals)):
                found[_key(budget, interval if name in quality.RENEWED else None, name)] = arm
    return found


def _budget_figures(measured: Measured, budget: str, config: QualityConfig, bundle: Bundle, few: IntArray) -> dict[str, Any]:
    """The figures of a budget with every arm at its own interval, and at each interval those of ``few`` of the items."""
    far = measured.items.far
    slots = quality.budget_slots(far, budget)
    own = {name: config.interval(name) for name in quality.RENEWED}
    result: dict[str, Any] = {"slots": slots, **_at_intervals(measured, budget, own, config.seed)}
    for name in quality.RENEWED & set(result["arms"]):
        result["arms"][name]["renewal"] = own[name]
    if bundle.gists is not None and far // BLOCK * bundle.gists.vectors <= slots:
        result["openings"] = arms.openings(far // BLOCK, slots, bundle.gists.vectors)
        if not result["openings"]:
            # The two are one and the same here: a difference of zero would read like a tie.
            result["differences"].pop("megacontext-gist", None)
    if config.renewals:
        part = measured.take(few)
        at_each = {each: dict.fromkeys(quality.RENEWED, each) for each in config.intervals}
        result["renewal"] = {
            str(each): {"items": len(few), **_at_intervals(part, budget, same, config.seed)} for each, same in at_each.items()
        }
    return result


def _at_intervals(measured: Measured, budget: str, intervals: Mapping[str, int], seed: int) -> dict[str, Any]:
    own = {_key(budget, intervals.get(name), name): name for name in NAMES}
    part = renamed(measured, {**own, "full": "full", "drop": "drop", "gist": "gist"})
    figures = Figures(part, seed=seed)
    names = [name for key, name in own.items() if key in measured.nll]
    share = figures.share_of_oracle("gist", "megacontext", "oracle") if figures.has("gist", "megacontext", "oracle") else {}
    return {
        "arms": {name: figures.arm(name) for name in names},
        "differences": figures.differences(quality.BUDGET_PAIRS),
        **share,
    }


def best_intervals(result: Mapping[str, Any]) -> dict[str, int]:
    """The interval at which each arm of a result has its lowest NLL, the mean over budgets; for choices on validation items.

    ConfigError for a result that compares no intervals.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for budget in result["budgets"].values():
        for interval, part in budget.get("renewal", {}).items():
            for name in quality.RENEWED & set(part["arms"]):
                found.setdefault(name, {}).setdefault(int(interval), []).append(part["arms"][name]["nll"])
    if not found:
        raise ConfigError("this result compares no renewal intervals: measure it with --renewals 64,32,8")
    return {name: min(each, key=lambda interval: sum(each[interval])) for name, each in sorted(found.items())}


def _unneeded(measured: Measured, seed: int) -> dict[str, Any]:
    keys = {"unneeded/alone": "alone", "unneeded/behind_unrelated": "behind"}
    figures = Figures(renamed(measured, keys), seed=seed)
    cost = figures.difference("behind", "alone")
    raw, with_gists = (int(figures.measured.slots[name]) for name in ("alone", "behind"))
    return {
        "nats": cost["diff"],
        "ci": cost["ci"],
        "far_copy": cost["far_copy"],
        "nll_alone": float(np.nanmean(figures.measured.nll["alone"])),
        "raw_tokens": raw + measured.items.tail,
        "gists": with_gists - raw,
    }


def _reconstruction(
    bundle: Bundle, items: Items, head: ReconstructionHead, config: QualityConfig, stage: Stage
) -> dict[str, Any]:
    """The share of tokens read back from their gist, over blocks of the far contexts, evenly chosen."""
    assert bundle.gists is not None, "a head belongs to a GistNet"
    blocks = np.concatenate([blocks_of(ids[: items.far]) for ids in items.ids])
    group = np.repeat(items.group, items.far // BLOCK)
    some = np.linspace(0, len(blocks) - 1, min(RECONSTRUCTED, len(blocks))).astype(np.int64)
    ids, live = blocks[some], np.ones((len(some), BLOCK), dtype=np.bool_)
    with stage("reconstruction", len(ids)) as advance:

        def done(count: int) -> None:
            for _ in range(count):
                advance()

        return reconstruction(head, bundle.base, bundle.gists, ids, live, group[some], seed=config.seed, progress=done)


def _levels(bundle: Bundle, source: Source, config: QualityConfig, lod: int, stage: Stage) -> dict[str, Any] | None:
    """The figures of one level: behind the newest tokens as LOD1 gists and, for LOD2, also right before the tail.

    None where nothing fits: no encoder, no such level, a short base or no history that is long enough.
    """
    count = {2: config.lod2_items, 3: config.lod3_items}[lod]
    near = min(896, quality.far_for(bundle.base, tail=config.tail, horizon=config.horizon))
    geometries = {
        "behind": LevelGeometry(lod=lod, spans={2: 4, 3: 1}[lod], near=near, tail=config.tail, horizon=config.horizon)
    }
    if lod == 2:
        geometries["adjacent"] = LevelGeometry(lod=2, spans=1, near=0, tail=config.tail, horizon=config.horizon)
    found = {}
    for name, geometry in geometries.items():
        if bundle.gists is None or not count or not geometry.fits(bundle.base, bundle.gists.vectors, lod):
            continue
        try:
            items = _draw(source, config, far=geometry.far, tail=near * (name == "behind") + config.tail, count=count, align=32)
        except DatasetError:
            continue
        if source.training is not None:
            items, _ = without_seen(items, *source.training)
        with stage(f"LOD{lod} {name}", len(items)) as advance:
            found[name] = measure_level(bundle, items, geometry, seed=config.seed, progress=advance)
    if not found:
        return None
    main = found.pop("behind", {})
    return {**main, **found}


def finite(value: Any) -> Any:
    """``value`` without figures that are no numbers: what could not be computed is absent, never invented."""
    if isinstance(value, Mapping):
        kept = {key: finite(each) for key, each in value.items()}
        return {key: each for key, each in kept.items() if each is not None}
    if isinstance(value, list | tuple):
        parts = [finite(each) for each in value]
        return None if any(part is None for part in parts) else parts
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
