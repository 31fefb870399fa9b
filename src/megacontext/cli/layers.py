"""Gist layers in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from megacontext.cli import output

if TYPE_CHECKING:
    from megacontext.engine.status import LayerStatus


def coverage(layer: LayerStatus) -> str:
    """A layer, how much it covers and what it lacks."""
    return f"{output.short(layer.fingerprint)} over {output.many(layer.blocks, 'block')}" + (
        f" ({_lack(layer)})" if _lack(layer) else ""
    )


def tell_behind(layers: Iterable[LayerStatus]) -> None:
    """Warn of layers that are not up to date."""
    for layer in layers:
        if not layer.current:
            output.warning(
                f"note: the gists of {output.short(layer.fingerprint)} are not up to date ({_lack(layer)}): megacontext "
                "regist with their --model mends that, or --remove drops them"
            )


def _lack(layer: LayerStatus) -> str:
    parts = [f"{layer.behind:,} behind"] if layer.behind else []
    return ", ".join([*parts, *(["dead blocks in it"] if layer.stale else [])])
