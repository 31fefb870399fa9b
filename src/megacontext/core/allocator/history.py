"""What recent refocus steps did: enough to refuse their reversal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megacontext.core.edits import Edit, inverse

_KEPT = 64  # refocus steps remembered; any sensible cooldown is far shorter


@dataclass(frozen=True)
class EditHistory:
    """The edits of the last refocus steps, oldest first. Immutable; ``record`` returns a new one.

    step counts all refocus steps so far; records holds ``(step, edits)`` of the last 64 of them.
    """

    step: int = 0
    records: tuple[tuple[int, tuple[Edit, ...]], ...] = ()

    def record(self, edits: Iterable[Edit]) -> EditHistory:
        """The history after one more refocus step (also when it changed nothing)."""
        return EditHistory(self.step + 1, (*self.records[1 - _KEPT :], (self.step, tuple(edits))))

    def blocked(self, cooldown: int) -> frozenset[Edit]:
        """The edits that would reverse one of the last ``cooldown`` steps."""
        oldest = self.step - cooldown
        return frozenset(inverse(edit) for step, edits in self.records if step >= oldest for edit in edits)
