"""Loading a trained gist encoder of whichever kind a folder holds."""

from __future__ import annotations

import json
from pathlib import Path

from megacontext.models.gistnet import GistNet
from megacontext.models.kv_gistnet import KeyValueGistNet
from megacontext.models.pretrained import CONFIG_FILE

AnyGistNet = GistNet | KeyValueGistNet


def load_gistnet(folder: str | Path, *, base_fingerprint: str | None = None) -> AnyGistNet:
    """A GistNet, or one for key/value gists. Errors as ``PretrainedNet.from_pretrained``."""
    kind: type[GistNet] | type[KeyValueGistNet] = GistNet
    try:
        facts = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
        if facts.get("model_type") == KeyValueGistNet.kind:
            kind = KeyValueGistNet
    except (OSError, ValueError, AttributeError):
        pass  # the loader below says what is wrong
    return kind.from_pretrained(folder, base_fingerprint=base_fingerprint)
