"""Have the gists of a key/value GistNet read with a reluctance: nats that each of their matches loses against raw tokens.

    python -m tools.set_reluctance runs/native_far/model/gistnet 0.5

Unneeded gists then cost less, needed ones carry a little less; the trade is to be chosen on validation items (docs/log.md).
The GistNet has another fingerprint afterwards: LensNets and memories are made for it anew.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from megacontext.models.encoders import load_gistnet
from megacontext.models.kv_gistnet import KeyValueGistNet


def set_reluctance(folder: Path, nats: float) -> str:
    """Change the GistNet in ``folder``; returns its new fingerprint. SystemExit for gists in the embedding space."""
    net = load_gistnet(folder)
    if not isinstance(net, KeyValueGistNet):
        raise SystemExit(f"{folder} makes gists in the embedding space: only key/value gists have a reluctance")
    changed = KeyValueGistNet(replace(net.config, reluctance=nats))
    changed.load_state_dict(net.state_dict())
    changed.save_pretrained(folder)
    return changed.fingerprint


def main() -> None:
    """Change it and say what it is called now."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gistnet", type=Path)
    parser.add_argument("nats", type=float)
    arguments = parser.parse_args()
    print(f"reluctance {arguments.nats}: {set_reluctance(arguments.gistnet, arguments.nats)}")


if __name__ == "__main__":
    main()
