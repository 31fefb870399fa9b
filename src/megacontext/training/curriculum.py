"""From easy to hard windows: how long a span a gist stands for, how many gists, which level, how much is left raw.

Every axis grows over a stretch of its own; a share of samples is drawn from earlier stages, so that what was learned stays
(REFRAG, https://arxiv.org/abs/2509.01092, found such an order decisive for reconstruction). Pure arithmetic: the
stage at a step depends on nothing but the step, and a drawn one on the generator beside.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from megacontext.core.node import BLOCK
from megacontext.errors import InvalidInput
from megacontext.training.frozen import Frozen

Stretch = tuple[float, float]
"""Where on the way from 0 (first step) to 1 (last) an axis starts to grow and where it is done."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a training window looks like.

    ``span`` tokens per LOD1 gist (32 in the end; shorter ones are blocks with fewer children); ``far`` blocks of far
    context; ``raw`` share of the far context's tokens that stays raw at least; ``gists`` at most; ``level`` the
    highest that may occur.
    """

    span: int
    far: int
    raw: float
    gists: int
    level: int

    @property
    def spans(self) -> int:
        """Spans in the far context, gisted or not."""
        return self.far * BLOCK // self.span

    @property
    def gisted(self) -> int:
        """Spans that are gists: what the raw share leaves, at least 1 and at most ``gists``."""
        return max(1, min(self.gists, round((1.0 - self.raw) * self.spans)))

    def pattern(self, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """Which spans of the far context are gists: bool [spans], ``gisted`` of them at random places."""
        chosen = np.zeros(self.spans, dtype=np.bool_)
        chosen[rng.choice(self.spans, size=self.gisted, replace=False)] = True
        return chosen


class Curriculum(Frozen):
    """The way from the first to the last stage.

    ``spans`` in tokens, rising divisors of 32, each for an equal part of its stretch. ``far`` and ``gists``: first and
    last number of far blocks and of gists; ``raw``: first and last share that stays raw (shrinking budgets).
    ``levels``: the highest level in the end; higher ones enter only once spans have reached 32. ``easy``: share of
    samples from earlier stages.
    """

    spans: tuple[int, ...] = (4, 8, 16, 32)
    far: tuple[int, int] = (4, 28)
    gists: tuple[int, int] = (1, 28)
    raw: tuple[float, float] = (0.9, 0.0)
    levels: int = Field(default=1, ge=1)
    easy: float = Field(default=0.2, ge=0, le=1)
    span_grows: Stretch = (0.0, 0.3)
    far_grows: Stretch = (0.0, 0.5)
    gists_grow: Stretch = (0.0, 0.5)
    raw_shrinks: Stretch = (0.2, 0.6)
    level_grows: Stretch = (0.3, 0.7)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.spans or any(BLOCK % span for span in self.spans) or list(self.spans) != sorted(set(self.spans)):
            raise ValueError(f"spans must be rising divisors of {BLOCK}, not {self.spans}")
        if self.levels > 1 and self.spans[-1] != BLOCK:
            raise ValueError(f"levels above 1 are made of {BLOCK}-token gists: let spans end with {BLOCK}")
        if not 1 <= self.far[0] <= self.far[1] or not 1 <= self.gists[0] <= self.gists[1]:
            raise ValueError("far and gists must rise from at least 1")
        if not 1 >= self.raw[0] >= self.raw[1] >= 0:
            raise ValueError("raw must fall, from at most 1 to at least 0")
        for name in ("span_grows", "far_grows", "gists_grow", "raw_shrinks", "level_grows"):
            start, stop = getattr(self, name)
            if not 0 <= start <= stop <= 1:
                raise ValueError(f"{name} must be two rising shares of the run, not {start} and {stop}")
        if self.levels > 1 and self.level_grows[0] < self.span_grows[1]:
            raise ValueError(f"level_grows must not start before spans have reached {BLOCK} (span_grows)")
        return self

    def at(self, step: int, steps: int) -> Stage:
        """The hardest stage that ``step`` of ``steps`` has reached; never easier than that of an earlier step."""
        if not 0 <= step < steps:
            raise InvalidInput(f"step {step} is not within a run of {steps}")
        return self._stage(step / max(1, steps - 1))

    def draw(self, step: int, steps: int, rng: np.random.Generator) -> Stage:
        """The stage of one sample: that of ``step``, or with probability ``easy`` that of a random earlier step."""
        easy, place = rng.random(2)
        now = self.at(step, steps)
        return self.at(int(place * step), steps) if easy < self.easy else now

    def _stage(self, way: float) -> Stage:
        rung = _part(way, self.span_grows, len(self.spans))
        far = round(_between(way, self.far_grows, *self.far))
        return Stage(
            span=self.spans[rung],
            far=far,
            raw=_between(way, self.raw_shrinks, *self.raw),
            gists=round(_between(way, self.gists_grow, *self.gists)),
            level=1 + _part(way, self.level_grows, self.levels),
        )


def _grown(way: float, stretch: Stretch) -> float:
    """How much of its stretch an axis has behind it, in [0, 1]."""
    start, stop = stretch
    if way >= stop:
        return 1.0
    return 0.0 if way <= start else (way - start) / (stop - start)


def _between(way: float, stretch: Stretch, first: float, last: float) -> float:
    if way >= stretch[1]:
        return last
    value = first + _grown(way, stretch) * (last - first)
    # Rounding must not overshoot the end.
    return min(value, last) if last >= first else max(value, last)


def _part(way: float, stretch: Stretch, parts: int) -> int:
    """The part, 0 … parts − 1, that an axis of equal parts is in; the last is reached at the stretch's end."""
    edges = [k / (parts - 1) for k in range(1, parts)] if parts > 1 else []
    return bisect_right(edges, _grown(way, stretch))
