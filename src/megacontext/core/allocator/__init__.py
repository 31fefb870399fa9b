"""Focus allocation: scores and a budget in, legal edits with reasons out."""

from megacontext.core.allocator.config import AllocatorConfig, ExactConfig
from megacontext.core.allocator.exact import ExactAllocator, objective
from megacontext.core.allocator.greedy import GreedyAllocator
from megacontext.core.allocator.history import EditHistory
from megacontext.core.allocator.plan import Allocator, Decision, Plan, Reason
from megacontext.core.allocator.recompute import RecomputeCost, SuffixCost
from megacontext.core.allocator.room import advance_within_budget, make_room
from megacontext.core.allocator.scores import FocusScores, Targets

__all__ = [
    "Allocator",
    "AllocatorConfig",
    "Decision",
    "EditHistory",
    "ExactAllocator",
    "ExactConfig",
    "FocusScores",
    "GreedyAllocator",
    "Plan",
    "Reason",
    "RecomputeCost",
    "SuffixCost",
    "Targets",
    "advance_within_budget",
    "make_room",
    "objective",
]
