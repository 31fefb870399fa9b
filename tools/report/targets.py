"""The targets that were set before anything was measured, against a quality result.

They stand here as data, so that the docs cannot move them: a miss is printed as one. A target whose figure is not in the
result has no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.report.files import Result
from tools.report.markdown import with_interval

LEAST_ITEMS = 300
RECOVERED, RECOVERED_FAR_COPY = 0.5, 0.4
SWAPPED_NEAR_ZERO = 0.05
DELTA_NATS, DELTA_SHARE = 0.10, 0.05
RECONSTRUCTED = 0.25
LOD2_KEPT = 0.30
UNNEEDED_NATS = 0.01
CONTROLS = ("drop", "mean", "rarest", "noise", "swapped")
Row = tuple[str, str, str]


def target_rows(result: Result) -> list[Row]:
    """Target, what was measured, and the verdict, for every target that the result speaks to."""
    return [*_ground(result), *_controls(result), *_carried(result), *_further(result)]


def _ground(result: Result) -> list[Row]:
    items = result["config"]["items"]
    rows = [(f"at least {LEAST_ITEMS} items", f"{items}", _verdict(items >= LEAST_ITEMS))]
    gate = result["gate"]
    if "drop_minus_full" in gate:
        measured = with_interval(gate, "drop_minus_full", ".3f") + " nats"
        rows.append(("the base uses far context (gate)", measured, _verdict(gate["judged"])))
    return rows


def _controls(result: Result) -> list[Row]:
    rows = []
    for control in CONTROLS:
        found = result["differences"].get(f"gist-{control}")
        if found:
            rows.append((f"gists below {control}, clear of zero", _nats(found), _verdict(found["ci"][1] < 0)))
    found = result["differences"].get("gist-recency")
    if found:
        rows.append(("gists below equal-slot recency", _nats(found), _verdict(found["diff"] < 0)))
    return rows


def _carried(result: Result) -> list[Row]:
    rows = []
    arms = result["arms"]
    gist = arms.get("gist", {})
    if "recovered" in gist:
        rows.append(
            (
                f"recovered ≥ {RECOVERED}",
                with_interval(gist, "recovered", ".2f"),
                _verdict(gist["recovered"] >= RECOVERED),
            )
        )
    copied = gist.get("far_copy", {})
    if "recovered" in copied:
        text = f"recovered ≥ {RECOVERED_FAR_COPY} on far-copy tokens"
        met = copied["recovered"] >= RECOVERED_FAR_COPY
        rows.append((text, with_interval(copied, "recovered", ".2f"), _verdict(met)))
    swapped = arms.get("swapped", {})
    if "recovered" in swapped:
        near = abs(swapped["recovered"]) <= SWAPPED_NEAR_ZERO
        text = f"swapped near 0 (within {SWAPPED_NEAR_ZERO})"
        rows.append((text, with_interval(swapped, "recovered", ".2f"), _verdict(near)))
    if "delta_nll" in gist:
        within = gist["delta_nll"] <= DELTA_NATS
        rows.append((f"ΔNLL ≤ {DELTA_NATS:.2f} nats", with_interval(gist, "delta_nll", "+.3f"), _verdict(within)))
    if "delta_nll_share" in gist:
        within = gist["delta_nll_share"] <= DELTA_SHARE
        rows.append((f"ΔNLL ≤ {DELTA_SHARE:.0%}", with_interval(gist, "delta_nll_share", "+.1%"), _verdict(within)))
    return rows


def _further(result: Result) -> list[Row]:
    rows = []
    if "reconstruction" in result:
        found = result["reconstruction"]
        met = found["tokens"] > RECONSTRUCTED
        text = f"more than {RECONSTRUCTED:.0%} of tokens reconstructed from an LOD1 gist"
        rows.append((text, with_interval(found, "tokens", ".1%"), _verdict(met)))
    lod2 = result.get("lod2", {})
    if "kept_of_lod1" in lod2 and lod2.get("judged"):
        met = lod2["kept_of_lod1"] >= LOD2_KEPT
        text = f"LOD2 keeps at least {LOD2_KEPT:.0%} of LOD1's gain"
        rows.append((text, with_interval(lod2, "kept_of_lod1", ".0%"), _verdict(met)))
    if "unneeded_cost" in result:
        found = result["unneeded_cost"]
        met = found["nats"] <= UNNEEDED_NATS
        text = f"unneeded gists cost ≤ {UNNEEDED_NATS} nats"
        rows.append((text, with_interval(found, "nats", "+.4f", ci="ci"), _verdict(met)))
    return rows


def _nats(found: Mapping[str, Any]) -> str:
    return with_interval(found, "diff", "+.3f", ci="ci") + " nats"


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"
