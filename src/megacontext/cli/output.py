"""Where output goes: results to stdout, everything else (progress, notes, errors) to stderr.

Text of users and of models is never read as markup. Colours only on a terminal.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def line(text: str = "") -> None:
    """A line of a result."""
    sys.stdout.write(text + "\n")


def piece(text: str) -> None:
    """A piece of a result that is still growing, shown at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def document(value: Mapping[str, Any]) -> None:
    """The one JSON document of a command."""
    text = json.dumps(value, indent=2, ensure_ascii=not speaks_unicode(), allow_nan=False)
    sys.stdout.write(text + "\n")


def facts(rows: Iterable[tuple[str, object]]) -> None:
    """Names and values, one pair a line, values in a column."""
    pairs = [(name, str(value)) for name, value in rows]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        line(f"{name:<{width}}  {value}".rstrip())


def table(header: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> None:
    """A table on stdout, as wide as the terminal; in full where stdout is none. `right` columns are numbers."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        last = name == header[-1]
        grid.add_column(name, justify="right" if name in right else "left", no_wrap=not last, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    stdout().print(grid)


def stdout() -> Console:
    """A console for results; without a terminal as wide as it takes, so that nothing is cut."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, markup=False, highlight=False, emoji=False, width=None if terminal else 1000)


def stderr() -> Console:
    """A console for progress and notes."""
    from rich.console import Console

    return Console(file=sys.stderr, markup=False, highlight=False, emoji=False, soft_wrap=True)


def note(text: str) -> None:
    """Something to know that is no result."""
    _tell(text, "2")


def warning(text: str) -> None:
    """Something that was not done, or not as asked."""
    _tell(text, "33")


def error(text: str) -> None:
    """What went wrong: one red line."""
    _tell(f"error: {text}", "31")


def _tell(text: str, style: str) -> None:
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    sys.stderr.write(f"{text}\n" if plain else f"\x1b[{style}m{text}\x1b[0m\n")
    sys.stderr.flush()


def speaks_unicode() -> bool:
    """Whether stdout can show any character."""
    return "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()


def never_fail_on_characters() -> None:
    """What an output cannot show becomes an escape such as \\u2593 instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def forget_stdout() -> None:
    """The reader of stdout is gone: what is still in the buffer goes nowhere, in silence."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no file
        return
    os.close(nowhere)


def many(count: int, thing: str) -> str:
    """A number of things, as in "1 document", "2,000 branches"."""
    ending = "" if count == 1 else "es" if thing.endswith("ch") else "s"
    return f"{count:,} {thing}{ending}"


def short(name: str) -> str:
    """The first digits of a commit's or model's name."""
    return name[:12]
