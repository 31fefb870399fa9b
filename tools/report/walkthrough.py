"""One session from its event log: the window as strips, what every refocus did, and what it cost.

The log is what ``megacontext generate --record`` wrote; windows come from ``engine.recording.replay``, so that a log whose
edits do not lead to its windows is refused here as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Patch

from megacontext.engine.recording import Frame, replay
from tools.report import plots
from tools.report.markdown import table

FOLDER = "sessions"
LEVELS = (
    ("raw", plots.BLUE),
    ("LOD1 gists", "#8fd3b6"),
    ("LOD2 gists", plots.ORANGE),
    ("LOD3 gists", plots.RED),
)
TAIL = "#c9d3da"
SHOWN = 3
"""Edits of a refocus that the table names."""


def load_sessions(results: Path) -> dict[str, dict[str, Any]]:
    """Facts and frames of every recording in the results' folder ``sessions``, by name."""
    return {path.stem: facts(list(replay(path))) for path in sorted((results / FOLDER).glob("*.jsonl"))}


def facts(frames: Sequence[Frame]) -> dict[str, Any]:
    """What the page tells of a session; ``frames`` as they were replayed."""
    steps = [frame for frame in frames if frame.kind == "refocus"]
    during = steps[1:]
    edits = [edit for frame in steps for edit in frame.record["edits"]]
    reversed_ = _reversed([frame.record["edits"] for frame in steps])
    tokens = [frame for frame in frames if frame.kind == "token"]
    spent = np.diff([0, *(frame.record["forwarded"] for frame in tokens)])
    entries = [len(frame.window) for frame in during]
    return {
        "frames": list(frames),
        "policy": frames[0].record["policy"],
        "prompt": frames[0].record["prompt"],
        "budget": frames[0].record["budget"],
        "every": frames[0].record["refocus_every"],
        "history": frames[0].window.timeline.tokens,
        "entries": len(frames[0].window),
        "decoded": len(tokens),
        "text": "".join(frame.record["text"] for frame in tokens),
        "refocuses": len(steps),
        "first_edits": len(steps[0].record["edits"]),
        "later_edits": sum(len(frame.record["edits"]) for frame in during),
        "edits": len(edits),
        "reversed": reversed_ / max(1, len(edits)),
        "swap_rate": float(np.mean([len(f.record["edits"]) / n for f, n in zip(during, entries, strict=True)]))
        if during
        else 0.0,
        "slots_per_token": float(spent[1:].mean()) if len(spent) > 1 else 0.0,
        "first_slots": int(spent[0]) if len(spent) else 0,
        "most_cost": max(frame.window.cost for frame in frames),
    }


def _reversed(steps: Sequence[Sequence[Sequence[Any]]], within: int = 8) -> int:
    """Edits that undo one of the last ``within`` refocuses."""
    opposite = {"expand": "collapse", "collapse": "expand"}
    count = 0
    for at, edits in enumerate(steps):
        before = {tuple(edit) for step in steps[max(0, at - within) : at] for edit in step}
        count += sum((opposite[kind], lod, index) in before for kind, lod, index in edits)
    return count


def steps_table(session: Mapping[str, Any]) -> str:
    """One row a refocus: after how many tokens, behind which text, how many edits and the strongest of them."""
    rows, text, decoded = [], str(session["prompt"]), 0
    for frame in session["frames"]:
        text += frame.record.get("text", "")
        decoded += frame.kind == "token"
        if frame.kind != "refocus":
            continue
        chosen = [each for each in frame.record["decisions"] if each["chosen"]]
        named = "; ".join(f"{each['edit']} ({each['score']:+.2f})" for each in chosen[:SHOWN])
        more = f"; {len(chosen) - SHOWN} more" if len(chosen) > SHOWN else ""
        behind = " ".join(text.split())[-36:].replace("|", "\\|").replace("`", "'")
        rows.append((f"{decoded}", f"`{behind}`", f"{len(chosen)}", f"{named or 'nothing'}{more}", f"{frame.window.cost}"))
    return table(("tokens", "behind", "edits", "the strongest (score)", "cost"), rows)


def strips(session: Mapping[str, Any]) -> str:
    """The window after every refocus as one strip: how its slots are spent, oldest first. SVG."""
    shown = [session["frames"][0], *(frame for frame in session["frames"] if frame.kind == "refocus")]
    with plots.figure(1.0 + 0.26 * len(shown), left=0.13) as (drawn, (panel,)):
        names, decoded, at = [], 0, 0
        for frame in session["frames"]:
            decoded += frame.kind == "token"
            if frame not in shown:
                continue
            _strip(panel, frame, at)
            names.append("start" if frame.kind == "session" else f"token {decoded}")
            at += 1
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.set_xlim(0, session["budget"])
        panel.set_xlabel("slots of the window, oldest on the left")
        panel.grid(axis="y", visible=False)
        keys = [*((name, colour) for name, colour in LEVELS), ("raw tail", TAIL)]
        handles = [Patch(color=colour, label=name) for name, colour in keys]
        panel.legend(handles=handles, ncols=5, loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, fontsize=8)
        return plots.svg(drawn)


def _strip(panel: Any, frame: Frame, at: int) -> None:
    window = frame.window
    costs = [*window.costs.tolist(), window.timeline.open_tokens]
    lods = [*window.lod.tolist(), 0]
    tail = [*(window.first_blocks >= window.tail_start).tolist(), True]
    left = 0.0
    # Neighbours of one look are drawn as one bar, or hundreds of them would make a file of megabytes.
    looks = [TAIL if old else LEVELS[min(lod, 3)][1] for lod, old in zip(lods, tail, strict=True)]
    start = 0
    for end in range(1, len(looks) + 1):
        if end == len(looks) or looks[end] != looks[start]:
            width = float(sum(costs[start:end]))
            panel.barh([at], [width], left=[left], height=0.78, color=looks[start], linewidth=0)
            left, start = left + width, end


def spent(session: Mapping[str, Any]) -> str:
    """Slots that went through the base for every decoded token: what an edit makes it read again. SVG."""
    tokens = [frame.record["forwarded"] for frame in session["frames"] if frame.kind == "token"]
    values = np.diff([0, *tokens]).tolist()
    with plots.figure(2.3, left=0.1) as (drawn, (panel,)):
        panel.bar(range(len(values)), values, width=0.9, color=plots.BLUE, linewidth=0)
        panel.set_xlabel("decoded tokens")
        panel.set_ylabel("slots through the base")
        panel.grid(axis="x", visible=False)
        drawn.subplots_adjust(top=0.94)
        return plots.svg(drawn)
