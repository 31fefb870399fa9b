"""One refocus: a policy scores the window, the allocator plans edits, the edits are applied."""

from __future__ import annotations

from dataclasses import dataclass

from megacontext.core import (
    AllocatorConfig,
    EditHistory,
    FocusScores,
    GreedyAllocator,
    Plan,
    WorkingContext,
    apply_all,
)
from megacontext.engine.policies import FocusPolicy, FocusView

# Chosen on validation packages (docs/log.md, 2026-11-24): what is needed changes within 16 tokens, so a cooldown costs
# more than the flicker it prevents; and a block that promises little is better than an unused slot.
FOCUS_DEFAULTS = AllocatorConfig(expand_threshold=0.0, collapse_threshold=0.05, cooldown=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Refocus:
    """What one refocus saw, decided and left: ``scores`` and ``plan`` belong to ``before``."""

    before: WorkingContext
    after: WorkingContext
    scores: FocusScores
    plan: Plan
    history: EditHistory


def refocus(
    view: FocusView,
    policy: FocusPolicy,
    config: AllocatorConfig,
    history: EditHistory,
    *,
    unlimited: bool = False,
    scores: FocusScores | None = None,
) -> Refocus:
    """Score, plan, apply. ``unlimited`` lifts the limit on edits: at a session's start and between turns. ``scores``: what the
    policy said about this view already (None: it is asked)."""
    scores = policy.score(view) if scores is None else scores
    allocator = GreedyAllocator(config.unlimited() if unlimited else config)
    plan = allocator.plan(view.window, scores, history)
    return Refocus(
        before=view.window,
        after=apply_all(plan.edits, view.window),
        scores=scores,
        plan=plan,
        history=history.record(plan.edits),
    )
