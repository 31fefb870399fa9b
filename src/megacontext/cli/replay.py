"""megacontext replay: a recorded session again, window by window, without the model."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacontext.cli import output
from megacontext.cli.sessions import window_facts
from megacontext.cli.verb import Call

if TYPE_CHECKING:
    from megacontext.engine.recording import Frame

WIDEST = 100
DECISIONS = 4
LINES = 8
"""Lines of the newest text that the animation keeps in sight."""


def replay(
    call: Call,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What megacontext generate --record FILE wrote.")],
    speed: Annotated[float, typer.Option(metavar="X", min=0.01, help="On a terminal: X times as fast as it was.")] = 1.0,
    steps: Annotated[bool, typer.Option("--steps", help="Print every refocus instead of an animation.")] = False,
) -> None:
    """Watch how the window of a recorded session followed what was written.

    On a terminal the level-of-detail strip moves as it did, with scores below it and the text as it came; elsewhere every
    refocus is printed. Neither the memory nor its model is needed.
    """
    from megacontext.engine.recording import replay as replayed

    frames = list(replayed(file))
    if call.json:
        output.document({"session": dict(frames[0].record), "frames": [_data(frame) for frame in frames[1:]]})
    elif steps or not sys.stdout.isatty():
        _printed(frames)
    else:
        _animated(frames, speed)


def _data(frame: Frame) -> dict[str, Any]:
    record = {key: value for key, value in frame.record.items() if key != "window"}
    return {**record, "window": {**window_facts(frame.window), "strip": _strip(frame, WIDEST)}}


def _strip(frame: Frame, width: int) -> str:
    from megacontext.core import strip

    shown = frame.before if frame.before is not None else frame.window
    return strip(shown, width, frame.scores, ascii_only=not output.speaks_unicode())


def _printed(frames: Sequence[Frame]) -> None:
    from megacontext.core import legend, strip
    from megacontext.core.render import summary

    width = min(shutil.get_terminal_size().columns, WIDEST)
    head = frames[0].record
    output.line(f"{head['model']}, policy {head['policy']}, budget {head['budget']}; prompt: {head['prompt']!r}")
    output.line(legend(ascii_only=not output.speaks_unicode()))
    text = ""
    for frame in frames:
        text += frame.record.get("text", "")
        if frame.kind != "refocus":
            continue
        output.line(f"\nrefocus {frame.record['step']} after {frame.record['at']:.2f} s, behind {text[-60:]!r}")
        output.line(_strip(frame, width))
        for decision in _chosen(frame):
            output.line(f"  {decision['score']:+.3f}  {decision['cost']:+5d}  {decision['edit']}: {decision['reason']}")
        output.line(strip(frame.window, width, ascii_only=not output.speaks_unicode()))
        output.line(summary(frame.window))
    output.line(f"\n{text}")


def _chosen(frame: Frame) -> list[dict[str, Any]]:
    return [each for each in frame.record["decisions"] if each["chosen"]]


def _animated(frames: Sequence[Frame], speed: float) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(console=output.stdout(), auto_refresh=False) as live:
        before = 0.0
        for shown, at in _screens(frames):
            time.sleep(max(0.0, at - before) / speed)
            before = at
            live.update(Text(shown), refresh=True)


def _screens(frames: Sequence[Frame]) -> Iterator[tuple[str, float]]:
    """What the terminal shows after each record, and when."""
    from megacontext.core import legend, strip
    from megacontext.core.render import summary

    width = min(shutil.get_terminal_size().columns, WIDEST)
    plain = not output.speaks_unicode()
    text, edits = str(frames[0].record["prompt"]), ""
    for frame in frames:
        text += frame.record.get("text", "")
        if frame.kind == "refocus":
            rows = [f"  {each['score']:+.3f}  {each['edit']}: {each['reason']}" for each in _chosen(frame)]
            edits = "\n".join([f"refocus {frame.record['step']}", *rows[:DECISIONS]])
            edits += f"\n  … and {len(rows) - DECISIONS} more" if len(rows) > DECISIONS else ""
        parts = [legend(ascii_only=plain), strip(frame.window, width, ascii_only=plain), summary(frame.window), edits, ""]
        yield "\n".join([*parts, *text.splitlines()[-LINES:]]), float(frame.record["at"])
