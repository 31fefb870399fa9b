"""Focus policies, one file each: whatever scores the entries of a window."""

from megacontext.engine.policies.base import FocusPolicy, FocusView, Search, no_search
from megacontext.engine.policies.random import Random
from megacontext.engine.policies.recency import Recency
from megacontext.engine.policies.retrieval import Retrieval

__all__ = ["FocusPolicy", "FocusView", "Random", "Recency", "Retrieval", "Search", "no_search"]
