"""What key/value gists keep, in words."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megacontext.engine.kept import Kept


def kept_words(kept: Iterable[Kept]) -> str:
    """Tokens, each behind the one that stood before it."""
    return ", ".join(f"{_quoted(each.before)} -> {_quoted(each.text)}" for each in kept)


def kept_line(each: Kept) -> str:
    """A token, and where it stands."""
    line = f":{each.line}" if each.line > 0 else ""
    return f"{kept_words([each])}  (score {each.score:.2f}, block {each.block:,}, {each.source}{line})"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
