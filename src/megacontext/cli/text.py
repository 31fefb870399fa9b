"""Text that a command works on, an argument or standard input for '-', and times that people write."""

from __future__ import annotations

import sys
from datetime import datetime

from megacontext.errors import InvalidInput

STDIN = "-"


def given_text(argument: str) -> str:
    """The argument itself, or all of standard input for '-', exactly as it is. InvalidInput unless it is UTF-8."""
    if argument != STDIN:
        return argument
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"standard input is not UTF-8 text (byte {error.start})") from error


def moment(text: str) -> float:
    """A time such as 2026-01-31 or 2026-01-31T18:00 (here, where no zone is given), in seconds since 1970."""
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidInput(f"{text!r} is no time: write it as 2026-01-31 or 2026-01-31T18:00") from error


def beginning(text: str, width: int = 72) -> str:
    """The beginning of a text as one line."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"
