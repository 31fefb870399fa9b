"""Settings of the allocators; each default is written here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megacontext.core.allocator.recompute import RecomputeCost
from megacontext.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AllocatorConfig:
    """How the greedy allocator turns scores into edits.

    Args:
        expand_threshold: only scores (and gains of targets) above it open anything; in the score's
            unit.
        collapse_threshold: a family is closed for its own sake when its mean score is below minus
            this.
        max_edits: most edits of one refocus, those that pay included; None for no limit. Edits that
            keep the reserve are not counted: the budget comes first.
        cooldown: refocus steps during which an edit may not be reversed.
        reserve: tokens of room that every plan leaves for what is decoded next.
        swap_margin: by how much an expansion must be worth more than what collapses to pay for it, in the
            score's unit: hysteresis against swaps that a little noise in the scores would cause.
        recompute: weighs edits against what has to be read again because of them; None: that costs nothing.

    Raises:
        ConfigError: for negative values.
    """

    expand_threshold: float = 0.2
    collapse_threshold: float = 0.2
    max_edits: int | None = 4
    cooldown: int = 2
    reserve: int = 32
    swap_margin: float = 0.0
    recompute: RecomputeCost | None = None

    def __post_init__(self) -> None:
        for name in ("expand_threshold", "collapse_threshold", "max_edits", "cooldown", "reserve", "swap_margin"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{name} must be at least 0, not {value}")

    def unlimited(self) -> AllocatorConfig:
        """The same settings without a limit on edits or a price: for a session's start and between turns."""
        return replace(self, max_edits=None, recompute=None)


@dataclass(frozen=True, kw_only=True)
class ExactConfig:
    """Settings of the exact allocator: ``reserve`` as in ``AllocatorConfig``.

    Raises:
        ConfigError: for a negative reserve.
    """

    reserve: int = 32

    def __post_init__(self) -> None:
        if self.reserve < 0:
            raise ConfigError(f"reserve must be at least 0, not {self.reserve}")
