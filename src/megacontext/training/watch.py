"""Early stopping: the best evaluation so far by one figure, and how many have passed without a better one."""

from __future__ import annotations

import math
from typing import Any

from megacontext.errors import ConfigError, CorruptCheckpoint, DivergedError
from megacontext.training.config import RunConfig


class Watch:
    """Follows ``config.stop_on``. Its state is part of a checkpoint, so that a resumed run stops where an undisturbed
    one would have."""

    def __init__(self, config: RunConfig) -> None:
        self._figure = config.stop_on
        self._sign = 1 if config.better == "higher" else -1
        self._patience = config.patience
        self.step: int | None = None
        self.figures: dict[str, float] = {}
        self._stale = 0

    @property
    def active(self) -> bool:
        """Whether a figure is watched at all."""
        return self._figure is not None

    @property
    def exhausted(self) -> bool:
        """Whether ``patience`` evaluations in a row brought nothing better (never with a patience of 0)."""
        return 0 < self._patience <= self._stale

    def see(self, step: int, figures: dict[str, float]) -> bool:
        """Take note of the evaluation after ``step`` steps; True if it is the best so far.

        ConfigError if it lacks the figure, DivergedError if that is not finite.
        """
        if self._figure is None:
            return False
        if self._figure not in figures:
            raise ConfigError(f"stop_on: no figure named {self._figure}; this run has {', '.join(sorted(figures))}")
        value = figures[self._figure]
        if not math.isfinite(value):
            raise DivergedError(f"{self._figure} became {value} on the validation split after step {step}: lower the rates")
        if self.step is not None and self._sign * value <= self._sign * self.figures[self._figure]:
            self._stale += 1
            return False
        self.step, self.figures, self._stale = step, dict(figures), 0
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return {"figure": self._figure, "step": self.step, "figures": self.figures, "stale": self._stale}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. What another figure called the best says nothing here and is left aside."""
        if state["figure"] != self._figure:
            return
        try:
            self.step, self.figures, self._stale = state["step"], dict(state["figures"]), int(state["stale"])
        except (KeyError, TypeError, ValueError) as err:
            raise CorruptCheckpoint("the checkpoint's record of the best evaluation is damaged: delete it") from err
