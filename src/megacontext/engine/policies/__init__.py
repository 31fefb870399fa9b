"""Focus policies, one file each: whatever scores the entries of a window."""

from megacontext.engine.policies.base import (
    FocusPolicy,
    FocusView,
    Search,
    Searches,
    Searching,
    SuffixSearch,
    no_search,
    no_searches,
    no_suffixes,
)
from megacontext.engine.policies.hybrid import BlockScorer, Evidence, Hybrid, HybridConfig
from megacontext.engine.policies.random import Random
from megacontext.engine.policies.recency import Recency
from megacontext.engine.policies.retrieval import Retrieval
from megacontext.engine.policies.suffix import Suffix

__all__ = [
    "BlockScorer",
    "Evidence",
    "FocusPolicy",
    "FocusView",
    "Hybrid",
    "HybridConfig",
    "Random",
    "Recency",
    "Retrieval",
    "Search",
    "Searches",
    "Searching",
    "Suffix",
    "SuffixSearch",
    "no_search",
    "no_searches",
    "no_suffixes",
]
