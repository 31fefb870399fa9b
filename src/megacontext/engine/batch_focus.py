"""Scores for several sessions whose refocus falls due together: those of one LensNet in one pass of it."""

from __future__ import annotations

from collections.abc import Sequence

from megacontext.core import FocusScores
from megacontext.engine.policies import FocusPolicy, FocusView


def score_together(pairs: Sequence[tuple[FocusPolicy, FocusView]]) -> list[FocusScores | Exception]:
    """Scores of each view by its policy, or what went wrong with that one.

    A policy that can score several views at once has ``score_many`` and says with ``net`` by what: those with the same net
    are scored in one pass, and one by one where that fails.
    """
    groups: dict[tuple[type, int], list[int]] = {}
    for at, (policy, _) in enumerate(pairs):
        shared = id(getattr(policy, "net", policy)) if hasattr(policy, "score_many") else id(policy)
        groups.setdefault((type(policy), shared), []).append(at)
    found: dict[int, FocusScores | Exception] = {}
    for places in groups.values():
        found.update(zip(places, _score([pairs[at] for at in places]), strict=True))
    return [found[at] for at in range(len(pairs))]


def _score(pairs: Sequence[tuple[FocusPolicy, FocusView]]) -> list[FocusScores | Exception]:
    policy = pairs[0][0]
    if len(pairs) > 1 and hasattr(policy, "score_many"):
        try:
            return list(policy.score_many([view for _, view in pairs]))
        except Exception:
            pass  # whose fault it was shows when each is scored alone
    return [_score_one(policy, view) for policy, view in pairs]


def _score_one(policy: FocusPolicy, view: FocusView) -> FocusScores | Exception:
    try:
        return policy.score(view)
    except Exception as error:
        return error


class Scored:
    """A policy whose scores are known already, for ``Session.refocus``."""

    def __init__(self, name: str, scores: FocusScores) -> None:
        self.name, self._scores = name, scores

    def score(self, view: FocusView) -> FocusScores:
        """See ``FocusPolicy.score``."""
        return self._scores
