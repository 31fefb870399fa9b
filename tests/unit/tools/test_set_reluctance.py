from __future__ import annotations

from pathlib import Path

import pytest

from megacontext.models.encoders import load_gistnet
from megacontext.testing.tiny_bundle import save_tiny_bundle
from tools.set_reluctance import set_reluctance


def test_the_network_is_the_same_but_read_otherwise(tmp_path: Path) -> None:
    folder = save_tiny_bundle(tmp_path / "bundle", key_value=True, lensnet=False) / "gistnet"
    before = load_gistnet(folder)
    fingerprint = set_reluctance(folder, 0.5)
    after = load_gistnet(folder)
    assert after.layout is not None and after.layout.reluctance == 0.5
    assert after.fingerprint == fingerprint != before.fingerprint
    assert all(bool((a == b).all()) for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True))


def test_embedded_gists_have_none(tmp_path: Path) -> None:
    folder = save_tiny_bundle(tmp_path / "bundle", lensnet=False) / "gistnet"
    with pytest.raises(SystemExit, match="key/value"):
        set_reluctance(folder, 0.5)
